//! A scenario as people write it.

use baton_coordinator::CoordinatorConfig;
use baton_protocol::{KvDtype, KvShape, Role, StepCost};
use serde::{Deserialize, Serialize};

use super::{
    Change, Limits, Link, Machine, Scenario, What,
    presets::{Gpu, ModelShape, PresetError},
};
use crate::traffic::{TrafficError, Workload};

/// A TOML file with all of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScenarioFile {
    /// Nodes by role.
    pub cluster: ClusterShape,
    /// Of every node.
    pub machine: MachineShape,
    /// As in a cluster's file; budgets that classes have hold over its.
    pub coordinator: CoordinatorConfig,
    /// As `bench serve` reads it.
    pub workload: Workload,
    /// What happens meanwhile.
    #[serde(rename = "event")]
    pub events: Vec<Happening>,
}

/// Nodes by role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterShape {
    /// Those that run prompts: `prefill-1` and so on.
    pub prefill: usize,
    /// Those that generate tokens: `decode-1`.
    pub decode: usize,
    /// Those that do both for requests of their own: `local-1`.
    pub local: usize,
}

/// A machine: of a card and a model, or told figure by figure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MachineShape {
    /// A card of the presets.
    pub gpu: Option<String>,
    /// The model's shape, for it: a directory with config.json, or a name in shapes/.
    pub shape: Option<String>,
    /// Seconds of steps with prompts, in place of the preset's.
    pub prefill: Option<CostShape>,
    /// Seconds of steps in which answers go on.
    pub decode: Option<CostShape>,
    /// Bytes of KV of a token, without a shape.
    pub kv_token_bytes: Option<u32>,
    /// Tokens of a page.
    pub page_tokens: Option<u32>,
    /// How steps are filled, and pages.
    pub limits: Limits,
    /// How KV and words travel.
    pub link: Link,
}

/// Seconds of a step: `base + unit × units + context × contexts`, as nodes publish it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostShape {
    /// Of a step, whatever it computes.
    pub base: f64,
    /// Of each prompt token, or answer.
    pub unit: f64,
    /// Of each token that one of them attends to.
    #[serde(default)]
    pub context: f64,
}

/// Something that happens meanwhile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub enum Happening {
    /// A node is gone.
    Fails {
        /// Seconds from the start.
        at: f64,
        /// Its name.
        node: String,
    },
    /// A node is back.
    Returns {
        /// Seconds from the start.
        at: f64,
        /// Its name.
        node: String,
    },
    /// A node's steps take longer from now on.
    Slows {
        /// Seconds from the start.
        at: f64,
        /// Its name.
        node: String,
        /// Times as long as its machine's.
        times: f64,
    },
    /// Sessions come faster from now on, or slower.
    Rate {
        /// Seconds from the start.
        at: f64,
        /// Times as many as the workload says.
        times: f64,
    },
    /// A class has another share of sessions from now on.
    Share {
        /// Seconds from the start.
        at: f64,
        /// The class's name.
        class: String,
        /// Relative to the other classes'.
        share: f64,
    },
    /// A node has this role alone from now on.
    Role {
        /// Seconds from the start.
        at: f64,
        /// Its name.
        node: String,
        /// `prefill` or `decode`.
        role: Role,
    },
}

/// Why a scenario cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// Nobody answers.
    #[error("a cluster needs decode nodes with prefill nodes, or local ones")]
    NoNodes,
    /// Not a node of it.
    #[error("no node {0:?} in the scenario's cluster")]
    UnknownNode(String),
    /// Not a class of it.
    #[error("no class {0:?} in the scenario's workload")]
    UnknownClass(String),
    /// A number that means nothing.
    #[error("{what} must be {wanted}, not {found}")]
    Unusable {
        /// The setting.
        what: &'static str,
        /// What it may be.
        wanted: &'static str,
        /// What it is.
        found: f64,
    },
    /// What a machine is was not said.
    #[error("a machine needs a card and a model's shape, or {0}")]
    NoMachine(&'static str),
    /// Not simulated.
    #[error("{0} is not simulated")]
    NotSimulated(&'static str),
    /// No preset.
    #[error(transparent)]
    Preset(#[from] PresetError),
    /// No traffic.
    #[error(transparent)]
    Traffic(#[from] TrafficError),
}

// === impl ScenarioFile ===

impl ScenarioFile {
    /// Everything that is to be run; `config`: the text of the shape's `config.json`.
    ///
    /// # Errors
    /// What cannot be, by name.
    pub fn scenario(self, config: Option<&str>) -> Result<Scenario, ScenarioError> {
        let Self { cluster, machine, coordinator, workload, events } = self;
        if cluster.local == 0 && (cluster.decode == 0 || cluster.prefill == 0) {
            return Err(ScenarioError::NoNodes);
        }
        if workload.max_in_flight.is_some() {
            return Err(ScenarioError::NotSimulated("max_in_flight"));
        }
        let (mut rates, mut shares) = (Vec::new(), Vec::new());
        let mut changes = Vec::new();
        for event in events {
            match event {
                Happening::Rate { at, times } => rates.push((checked("at", at)?, checked("times", times)?)),
                Happening::Share { at, class, share } => {
                    let number = workload.classes.iter().position(|own| own.name == class);
                    let number = number.ok_or(ScenarioError::UnknownClass(class))?;
                    shares.push((checked("at", at)?, number, checked("share", share)?));
                }
                Happening::Role { role: Role::Coordinator, .. } => {
                    return Err(ScenarioError::NotSimulated("a node that becomes a coordinator"));
                }
                Happening::Role { at, node, role } => {
                    changes.push(cluster.change(at, &node, |node| What::Role { node, role })?);
                }
                Happening::Fails { at, node } => {
                    changes.push(cluster.change(at, &node, |node| What::Fails { node })?);
                }
                Happening::Returns { at, node } => {
                    changes.push(cluster.change(at, &node, |node| What::Returns { node })?);
                }
                Happening::Slows { at, node, times } => {
                    checked("times", times)?;
                    changes.push(cluster.change(at, &node, |node| What::Slows { node, times })?);
                }
            }
        }
        rates.sort_by(|one: &(f64, f64), other| one.0.total_cmp(&other.0));
        shares.sort_by(|one: &(f64, usize, f64), other| one.0.total_cmp(&other.0));
        if workload.trace.is_some() && !shares.is_empty() {
            return Err(ScenarioError::NotSimulated("another share of the sessions of a trace"));
        }
        Ok(Scenario {
            machine: machine.machine(config)?,
            cluster,
            coordinator,
            traffic: workload.mixed(workload.traffic()?.faster(&rates), &shares),
            classes: workload.classes,
            seed: workload.seed,
            changes,
        })
    }
}

// === impl ClusterShape ===

impl Default for ClusterShape {
    fn default() -> Self {
        Self { prefill: 1, decode: 1, local: 0 }
    }
}

impl ClusterShape {
    /// Nodes in all.
    pub fn nodes(&self) -> usize {
        self.prefill + self.decode + self.local
    }

    /// Their names and roles.
    pub(super) fn names(&self) -> impl Iterator<Item = (String, &'static [Role])> {
        const PREFILL: &[Role] = &[Role::Prefill];
        const DECODE: &[Role] = &[Role::Decode];
        const BOTH: &[Role] = &[Role::Prefill, Role::Decode];
        let of = |name: &'static str, count: usize, roles| {
            (1..=count).map(move |number| (format!("{name}-{number}"), roles))
        };
        of("prefill", self.prefill, PREFILL)
            .chain(of("decode", self.decode, DECODE))
            .chain(of("local", self.local, BOTH))
    }

    fn change(&self, at: f64, name: &str, what: impl Fn(usize) -> What) -> Result<Change, ScenarioError> {
        let node = self.names().position(|(own, _)| own == name);
        let node = node.ok_or_else(|| ScenarioError::UnknownNode(name.to_owned()))?;
        Ok(Change { at: checked("at", at)?, what: what(node) })
    }
}

// === impl MachineShape ===

impl MachineShape {
    /// The machine; `config`: the text of the shape's `config.json`.
    ///
    /// # Errors
    /// When too little is said, or it cannot be.
    pub fn machine(&self, config: Option<&str>) -> Result<Machine, ScenarioError> {
        self.machine_of(1, config)
    }

    /// The machine of so many cards; without a card there is but one.
    ///
    /// # Errors
    /// When too little is said, or it cannot be.
    pub fn machine_of(&self, cards: usize, config: Option<&str>) -> Result<Machine, ScenarioError> {
        checked("link.bytes_per_second", self.link.bytes_per_second)?;
        checked("limits.max_batch_tokens", self.limits.max_batch_tokens as f64)?;
        checked("limits.max_sequences", self.limits.max_sequences as f64)?;
        let mut machine = match (&self.gpu, config) {
            (Some(gpu), Some(config)) => {
                Gpu::named(gpu)?.machine_of(cards, &ModelShape::parse(config)?, self.limits, self.link)?
            }
            (Some(_), None) => return Err(ScenarioError::NoMachine("the shape for the card")),
            (None, _) if cards > 1 => return Err(ScenarioError::NoMachine("one card: figures are a node's")),
            (None, _) => self.told()?,
        };
        if let Some(cost) = self.prefill {
            machine.prefill = cost.cost()?;
        }
        if let Some(cost) = self.decode {
            machine.decode = cost.cost()?;
        }
        if let Some(page_tokens) = self.page_tokens.filter(|_| self.gpu.is_some()) {
            // The same memory in other pages.
            let tokens = machine.limits.pages * machine.kv.page_tokens as usize;
            machine.limits.pages = tokens / page_tokens.max(1) as usize;
            machine.kv.page_tokens = page_tokens.max(1);
        }
        Ok(machine)
    }

    fn told(&self) -> Result<Machine, ScenarioError> {
        let missing = |what| ScenarioError::NoMachine(what);
        if self.limits.pages == 0 {
            return Err(missing("limits.pages"));
        }
        let bytes = self.kv_token_bytes.ok_or_else(|| missing("kv_token_bytes"))?;
        Ok(Machine {
            // As many heads of one element pair as make up the bytes.
            kv: KvShape {
                layers: 1,
                kv_heads: 1,
                head_dim: bytes.div_ceil(4).max(1),
                dtype: KvDtype::Bf16,
                page_tokens: self.page_tokens.unwrap_or(16).max(1),
            },
            prefill: self.prefill.ok_or_else(|| missing("prefill costs"))?.cost()?,
            decode: self.decode.ok_or_else(|| missing("decode costs"))?.cost()?,
            limits: self.limits,
            link: self.link,
        })
    }
}

// === impl CostShape ===

impl CostShape {
    fn cost(self) -> Result<StepCost, ScenarioError> {
        let cost = StepCost { base: self.base, unit: self.unit, context: self.context };
        let found = self.base.min(self.unit).min(self.context);
        let unusable = ScenarioError::Unusable { what: "costs of steps", wanted: "at least 0", found };
        // Steps that take no time would never end.
        (cost.is_sane() && self.base + self.unit > 0.0).then_some(cost).ok_or(unusable)
    }
}

impl From<StepCost> for CostShape {
    fn from(StepCost { base, unit, context }: StepCost) -> Self {
        Self { base, unit, context }
    }
}

fn checked(what: &'static str, found: f64) -> Result<f64, ScenarioError> {
    let is_good = found >= 0.0 && found.is_finite() && (found > 0.0 || what == "at");
    is_good.then_some(found).ok_or(ScenarioError::Unusable { what, wanted: "above 0", found })
}
