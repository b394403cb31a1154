//! When sessions begin.

use std::time::Duration;

use rand::Rng;
use rand_distr::{Distribution, Exp1, Gamma};
use serde::{Deserialize, Serialize};

use super::{Session, TrafficError, positive};

/// A process of arrivals. All but [`Closed`](Self::Closed) are open: they do
/// not wait for answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Arrivals {
    /// Independent users: times between arrivals are exponential.
    Poisson {
        /// Sessions a second.
        rate: f64,
    },
    /// Times between arrivals are gamma with this shape, as in `vllm bench serve`:
    /// 1 is Poisson, less comes in bursts, more is more even. Their variance over
    /// the square of their mean is `1 / burstiness`.
    Gamma {
        /// Sessions a second.
        rate: f64,
        /// Shape.
        burstiness: f64,
    },
    /// Evenly spaced.
    Constant {
        /// Sessions a second.
        rate: f64,
    },
    /// At the times of a trace.
    Replay {
        /// 2 is twice as fast.
        speed: f64,
    },
    /// Clients that ask again when they have their answers.
    Closed {
        /// So many.
        clients: usize,
    },
}

// === impl Arrivals ===

impl Default for Arrivals {
    fn default() -> Self {
        Self::Poisson { rate: 1.0 }
    }
}

impl Arrivals {
    /// The same process with so many sessions a second; replay and closed loops have no rate.
    pub fn with_rate(&self, rate: f64) -> Self {
        match *self {
            Self::Poisson { .. } => Self::Poisson { rate },
            Self::Gamma { burstiness, .. } => Self::Gamma { rate, burstiness },
            Self::Constant { .. } => Self::Constant { rate },
            Self::Replay { speed } => Self::Replay { speed },
            Self::Closed { clients } => Self::Closed { clients },
        }
    }

    /// Sessions a second; replay and closed loops have no rate.
    pub fn rate(&self) -> Option<f64> {
        match *self {
            Self::Poisson { rate } | Self::Gamma { rate, .. } | Self::Constant { rate } => Some(rate),
            Self::Replay { .. } | Self::Closed { .. } => None,
        }
    }

    /// Clients of a closed loop.
    pub fn clients(&self) -> Option<usize> {
        match *self {
            Self::Closed { clients } => Some(clients),
            _ => None,
        }
    }

    pub(super) fn check(&self, has_trace: bool) -> Result<(), TrafficError> {
        match *self {
            Self::Poisson { rate } | Self::Constant { rate } => positive("rate", rate),
            Self::Gamma { rate, burstiness } => {
                positive("rate", rate).and_then(|()| positive("burstiness", burstiness))
            }
            Self::Replay { .. } if !has_trace => Err(TrafficError::NoTimes),
            Self::Replay { speed } => positive("speed", speed),
            Self::Closed { clients } => positive("clients", clients as f64),
        }
    }

    /// Gives sessions their times. A trace's own times are kept only by replay.
    pub(super) fn set_times(
        &self,
        sessions: &mut [Session],
        random: &mut impl Rng,
    ) -> Result<(), TrafficError> {
        match *self {
            Self::Poisson { rate } => {
                let mut gap = || -> f64 { Exp1.sample(random) };
                space(sessions, || gap() / rate);
            }
            Self::Gamma { rate, burstiness } => {
                let unusable =
                    |_| TrafficError::Unusable { what: "burstiness", wanted: "above 0", found: burstiness };
                let gaps = Gamma::new(burstiness, 1.0 / burstiness).map_err(unusable)?;
                space(sessions, || gaps.sample(random) / rate);
            }
            Self::Constant { rate } => space(sessions, || 1.0 / rate),
            Self::Replay { speed } => {
                sessions.sort_by_key(|session| session.at);
                let first = sessions.first().map_or(Duration::ZERO, |session| session.at);
                for session in sessions {
                    session.at = (session.at - first).div_f64(speed);
                }
            }
            Self::Closed { .. } => sessions.iter_mut().for_each(|session| session.at = Duration::ZERO),
        }
        Ok(())
    }
}

fn space(sessions: &mut [Session], mut gap_seconds: impl FnMut() -> f64) {
    let mut at = 0.0;
    for session in sessions {
        at += gap_seconds();
        session.at = Duration::from_secs_f64(at);
    }
}
