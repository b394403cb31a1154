//! The pages of `baton bench slo` and `baton simulate` in a real browser, light and dark.

use std::{fs, process::Command};

use baton_lab::{
    budgets::Budgets,
    measure::{Outcome, Phases, Record, Run, Summary},
    report::{Measured, html},
    slo::{Bracket, Side, SloFile, Trial},
    traffic::Workload,
};

/// Says in the page's title what cannot be seen from outside.
const LOOK: &str = r#"<script>
addEventListener("load", () => {
  const svgs = [...document.querySelectorAll("svg")];
  const outside = svgs.flatMap(svg => [...svg.querySelectorAll("text, circle, rect, polyline")].filter(part => {
    const box = part.getBBox(), view = svg.viewBox.baseVal;
    return box.x < -1 || box.y < -1 || box.x + box.width > view.width + 1 || box.y + box.height > view.height + 1;
  })).map(part => part.textContent);
  const rows = [...document.querySelectorAll("a[download]")].map(link =>
    decodeURIComponent(link.href.split(",").slice(1).join(",")).trim().split("\n").length - 1);
  document.title = JSON.stringify({
    background: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    line: getComputedStyle(document.querySelector("polyline")).stroke,
    svgs: svgs.length, shown: svgs.filter(svg => svg.getBoundingClientRect().height > 50).length, outside, rows,
    wide: document.documentElement.scrollWidth > innerWidth,
    fetched: performance.getEntriesByType("resource").length,
  });
});
</script>"#;

fn trial(rate: f64, step_ms: f32) -> Trial {
    let record = |number: usize| Record {
        class: 0,
        session: number,
        turn: 0,
        intended: number as f64 / rate,
        sent: number as f64 / rate,
        end: number as f64 / rate + 1.0,
        outcome: Outcome::Answered,
        ttft: Some(0.1 + 0.01 * number as f64),
        gaps: (0..40).map(|gap| (step_ms + gap as f32) / 1e3).collect(),
        prompt_tokens: Some(128),
        cached_tokens: Some(0),
        output_tokens: 41,
        wanted_tokens: 41,
        phases: Some(Phases {
            queue_ms: 8.0,
            prefill_ms: 90.0,
            transfer_ms: 40.0,
            wait_ms: 4.0,
            decode_ms: 800.0,
        }),
    };
    let run = Run {
        records: (0..30).map(record).collect(),
        seconds: 30.0,
        kv_usage: vec![0.1, 0.4],
        ..Run::default()
    };
    let workload = Workload::default();
    let summary = Summary::of(&run, &workload.classes);
    let (name, url, model) = ("a run".to_owned(), "http://127.0.0.1:1".to_owned(), "mock".to_owned());
    Trial { rate, runs: vec![Measured { name, url, model, workload, summary, run }] }
}

fn page() -> String {
    let budgets = Budgets { ttft_ms: Some(400.0), itl_ms: Some(50.0), ..Budgets::default() };
    let mut file = SloFile::new("baton bench slo --rate 1".to_owned(), 0.9, budgets);
    for (name, step_ms) in [("split", 8.0), ("local", 30.0)] {
        let trials = vec![trial(1.0, step_ms), trial(2.0, step_ms), trial(1.41, step_ms)];
        let bracket = Bracket { held: Some(1.41), missed: Some(2.0) };
        file.sides.push(Side { name: name.to_owned(), settings: Vec::new(), trials, bracket });
    }
    html::slo(&[("run".to_owned(), file)], &[])
}

/// The page that a simulation writes, of a cluster in which a node grows slow.
fn simulated() -> String {
    let dir = tempfile::tempdir().unwrap();
    let [scenario, html] = ["scenario.toml", "page.html"].map(|name| dir.path().join(name));
    fs::write(&scenario, SCENARIO).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_baton"))
        .arg("simulate")
        .arg("--scenario")
        .arg(&scenario)
        .arg("--html")
        .arg(&html)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read_to_string(html).unwrap()
}

const SCENARIO: &str = r#"
cluster = { prefill = 2, decode = 4 }

[machine]
prefill = { base = 0.001, unit = 0.0001 }
decode = { base = 0.01, unit = 0.0005 }
kv_token_bytes = 1024
limits = { pages = 2000 }

[workload]
sessions = 300
arrivals = { kind = "poisson", rate = 20.0 }

[[workload.class]]
shape = { input = "100:600", output = "20:60" }
budgets = { ttft_ms = 300.0, itl_ms = 30.0 }

[[event]]
what = "slows"
at = 3.0
node = "decode-2"
times = 6.0
"#;

/// What the browser says of a page.
fn look(browser: &str, page: &str, is_dark: bool) -> serde_json::Value {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("page.html");
    fs::write(&file, page.replace("</head>", &format!("{LOOK}</head>"))).unwrap();
    let output = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"])
        .args(["--window-size=900,1200", "--virtual-time-budget=2000"])
        .arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!is_dark)))
        .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&output.stdout);
    let title =
        dom.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next()).unwrap_or_default();
    serde_json::from_str(&title.replace("&amp;", "&").replace("&quot;", "\""))
        .unwrap_or_else(|_| panic!("{title:?} {}", String::from_utf8_lossy(&output.stderr)))
}

/// How light a `rgb(r, g, b)` is, 0 to 255.
fn lightness(color: &serde_json::Value) -> u32 {
    let digits = color.as_str().unwrap().trim_start_matches("rgb(").trim_end_matches(')');
    digits.split(',').map(|part| part.trim().parse::<u32>().unwrap()).sum::<u32>() / 3
}

/// Looks at a page of so many plots and tables, light and dark.
fn can_be_read(page: &str, (plots, tables): (u64, usize)) {
    let Ok(browser) = std::env::var("BATON_BROWSER") else {
        println!("BATON_BROWSER names no browser: not looked at");
        return;
    };
    for is_dark in [false, true] {
        let seen = look(&browser, page, is_dark);
        assert_eq!(lightness(&seen["background"]) < 100, is_dark, "{seen}");
        assert!(lightness(&seen["background"]).abs_diff(lightness(&seen["ink"])) > 150, "{seen}");
        assert!(lightness(&seen["background"]).abs_diff(lightness(&seen["line"])) > 60, "{seen}");
        assert_eq!((seen["svgs"].as_u64(), seen["shown"].as_u64()), (Some(plots), Some(plots)), "{seen}");
        assert_eq!(seen["outside"], serde_json::json!([]), "{seen}");
        let rows = seen["rows"].as_array().unwrap();
        assert_eq!(rows.len(), plots as usize + tables, "{seen}");
        assert!(rows[..plots as usize].iter().all(|count| count.as_u64() > Some(1)), "{seen}");
        assert!(rows.iter().all(|count| count.as_u64() > Some(0)), "{seen}");
        assert_eq!((seen["fetched"].as_u64(), seen["wide"].as_bool()), (Some(0), Some(false)), "{seen}");
    }
}

#[test]
fn the_page_of_a_search_can_be_read_light_and_dark() {
    // Attainment, three distributions, KV use, and the requests of both sides.
    can_be_read(&page(), (7, 0));
}

#[test]
fn the_page_of_a_simulation_can_be_read_light_and_dark() {
    let page = simulated();
    assert!(page.contains("decode-2</td><td>gets no new work"), "{page}");
    // Three distributions, KV use, requests and roles; and what was done about nodes.
    can_be_read(&page, (6, 1));
}
