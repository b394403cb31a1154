//! Where a request stands when something happens to it: a cluster for each
//! phase, in which that phase lasts, and how one sees that it has begun.

use serde_json::Value;

use crate::sandbox::Cluster;

/// A column of the table.
pub struct Phase {
    pub letter: char,
    pub name: &'static str,
    /// Lines of section `engine.mock`, and sections behind it.
    settings: &'static str,
    /// Frames on their way, unless a fault has others.
    frames: &'static str,
    /// Of a request that stays a while in this phase; a few more do no harm.
    pub prompt_tokens: usize,
    pub max_tokens: usize,
    /// Other requests beside it.
    pub others: usize,
    sign: Sign,
}

/// What is seen of a request in its phase.
enum Sign {
    Queued,
    /// A prefill node runs the prompt.
    Prefilling,
    /// The first token is out, and pages still come in.
    Receiving,
    /// The decode node runs the prompt.
    Local,
    Streaming,
}

/// Where mocks are told to hang.
pub const HANGS_BY: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/hangs");

/// The name of all clusters.
pub const CLUSTER: &str = "chaos";

/// What all clusters have: prompts and steps that take a while, and patience.
const USUAL: &str = r#"
model = "mock"

[frontend]
listen = "127.0.0.1:0"

[admin]
listen = "127.0.0.1:0"

[engine]
backend = "mock"
pages = 512
page_tokens = 16
step_limit_ms = 5000
"#;

pub const PHASES: [Phase; 5] = [
    Phase {
        letter: 'Q',
        name: "queued",
        settings: "step_us_base = 8000\n[coordinator]\nmax_running = 1\nmax_wait_ms = 60000\n",
        frames: "",
        prompt_tokens: 60,
        max_tokens: 300,
        others: 1,
        sign: Sign::Queued,
    },
    Phase {
        letter: 'P',
        name: "prefill",
        settings: "prefill_us_per_token = 8000\nstep_us_base = 8000\n",
        frames: "",
        prompt_tokens: 200,
        max_tokens: 30,
        others: 2,
        sign: Sign::Prefilling,
    },
    Phase {
        letter: 'T',
        name: "transfer",
        settings: "step_us_base = 8000\n",
        frames: "delay_probability = 1.0\nmax_delay_ms = 150\n",
        prompt_tokens: 200,
        max_tokens: 30,
        others: 2,
        sign: Sign::Receiving,
    },
    Phase {
        letter: 'D',
        name: "prompt on the decode node",
        settings: "prefill_us_per_token = 15000\nstep_us_base = 8000\n\
            [coordinator]\nlocal_prefill_below_tokens = 1000\n",
        frames: "",
        prompt_tokens: 100,
        max_tokens: 30,
        others: 2,
        sign: Sign::Local,
    },
    Phase {
        letter: 'S',
        name: "streaming",
        settings: "step_us_base = 8000\n",
        frames: "",
        prompt_tokens: 60,
        max_tokens: 300,
        others: 2,
        sign: Sign::Streaming,
    },
];

impl Phase {
    /// The cluster's settings; `frames` takes the place of the phase's own.
    pub fn settings(&self, frames: Option<&str>) -> String {
        let frames = frames.unwrap_or(self.frames);
        let faults = if frames.is_empty() { "" } else { "\n[transfer.faults]\nseed = 1\n" };
        let cluster = format!("cluster = \"{CLUSTER}\"\n{USUAL}\n[engine.mock]\nhangs_by = \"{HANGS_BY}\"");
        let transfer = format!("[transfer]\ntransport = \"tcp\"\nframe_bytes = 1024\n{faults}{frames}");
        format!("{cluster}\n{}\n{transfer}\n", self.settings)
    }

    /// Whether a request stands in it, by the coordinator's entry and by the nodes that it is on.
    pub async fn has(&self, cluster: &Cluster, request: &Value) -> bool {
        let pages = async |role: &str| match request[role].as_str() {
            Some(node) => cluster.pages(node).await.unwrap_or_default(),
            None => Default::default(),
        };
        let (stage, tokens) = (&request["stage"], request["tokens"].as_u64().unwrap_or(0));
        match self.sign {
            Sign::Queued => stage == "queued",
            Sign::Prefilling => {
                let pages = pages("prefill").await;
                stage == "prefill" && pages.running + pages.sending > 0
            }
            Sign::Receiving => tokens > 0 && pages("decode").await.receiving > 0,
            Sign::Local => {
                stage == "prefill" && request["prefill"].is_null() && pages("decode").await.running > 0
            }
            Sign::Streaming => tokens > 40,
        }
    }
}
