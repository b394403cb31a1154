//! Values on a line.

/// From values to places.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    from: f64,
    to: f64,
    is_log: bool,
    start: f64,
    end: f64,
}

/// Marks on an axis, about.
const TICKS: f64 = 5.0;

// === impl Axis ===

impl Axis {
    /// With room for all the values, and for the range if there is one.
    pub(super) fn new(
        values: impl IntoIterator<Item = f64>,
        range: Option<(f64, f64)>,
        is_log: bool,
    ) -> Self {
        let usable = |value: &f64| value.is_finite() && (!is_log || *value > 0.0);
        let all =
            values.into_iter().chain(range.into_iter().flat_map(|(low, high)| [low, high])).filter(usable);
        let (low, high) = all
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let (from, to) = match (low < high, is_log) {
            (true, _) => (low, high),
            // One value, or none.
            (false, true) => {
                if low.is_finite() {
                    (low / 2.0, low * 2.0)
                } else {
                    (1.0, 10.0)
                }
            }
            (false, false) => {
                if low.is_finite() {
                    (low.min(0.0), low.abs() * 1.1 + 1.0)
                } else {
                    (0.0, 1.0)
                }
            }
        };
        Self { from, to, is_log, start: 0.0, end: 1.0 }
    }

    /// Drawn from here to there.
    pub(super) fn to(self, start: f64, end: f64) -> Self {
        Self { start, end, ..self }
    }

    pub(super) fn place(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.is_log { value.max(self.from).ln() } else { value };
        let share = (scale(value) - scale(self.from)) / (scale(self.to) - scale(self.from));
        self.start + share.clamp(0.0, 1.0) * (self.end - self.start)
    }

    /// Round values and their places.
    pub(super) fn ticks(&self) -> Vec<(f64, f64)> {
        let values: Vec<f64> = if self.is_log { self.powers() } else { self.multiples() };
        values.into_iter().map(|value| (value, self.place(value))).collect()
    }

    fn multiples(&self) -> Vec<f64> {
        let rough = (self.to - self.from) / TICKS;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
        let step = step.into_iter().find(|step| *step >= rough * 0.999).unwrap_or(rough);
        let first = (self.from / step - 1e-9).ceil() as i64;
        let last = (self.to / step + 1e-9).floor() as i64;
        (first..=last).map(|count| count as f64 * step).collect()
    }

    fn powers(&self) -> Vec<f64> {
        let decades = (self.from.log10().floor() as i32)..=(self.to.log10().ceil() as i32);
        let factors: &[f64] = if self.to / self.from > 500.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let all = decades.flat_map(|power| factors.iter().map(move |factor| factor * 10_f64.powi(power)));
        all.filter(|value| (self.from * 0.999..=self.to * 1.001).contains(value)).collect()
    }
}

/// A value as short as it can be read.
pub(super) fn label(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 0.1 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}
