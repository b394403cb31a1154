//! Lines and steps over two axes, as SVG that takes its colours from the page.

use std::fmt::Write;

use super::axis::{Axis, label};

/// A plot with all that is in it.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Of the plot, and of the file with its data.
    pub title: String,
    /// Words under the horizontal axis.
    pub x: &'static str,
    /// Words above the vertical axis.
    pub y: &'static str,
    /// Whether each step to the right multiplies.
    pub x_is_log: bool,
    /// The vertical axis; none: from 0 to what is needed.
    pub y_range: Option<(f64, f64)>,
    /// A horizontal line that matters, and its name.
    pub mark: Option<(f64, String)>,
    /// Lines by name.
    pub series: Vec<Series>,
}

/// A line.
#[derive(Clone, Debug)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
    /// Whether points are shown.
    pub dots: bool,
}

/// Size of a plot and its margins: left, top, right, bottom.
const SIZE: (f64, f64) = (640.0, 300.0);
const MARGIN: (f64, f64, f64, f64) = (56.0, 28.0, 16.0, 44.0);
/// Points of a distribution, at most.
const CDF_POINTS: usize = 400;

// === impl Series ===

impl Series {
    /// The share of values that are not above each value.
    pub fn distribution(name: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let every = sorted.len().div_ceil(CDF_POINTS).max(1);
        let count = sorted.len() as f64;
        let shown =
            sorted.iter().enumerate().filter(|(index, _)| index % every == 0 || index + 1 == sorted.len());
        let points = shown.map(|(index, &value)| (value, (index + 1) as f64 / count)).collect();
        Self { name: name.to_owned(), points, dots: false }
    }
}

// === impl Plot ===

impl Plot {
    /// The data, a row a point.
    pub fn csv(&self) -> String {
        let mut table = super::Table::new(["series", self.x, self.y]);
        for series in &self.series {
            for (x, y) in &series.points {
                table.push(vec![series.name.clone(), x.to_string(), y.to_string()]);
            }
        }
        table.csv()
    }

    /// The picture.
    pub fn svg(&self) -> String {
        let (left, top, right, bottom) = MARGIN;
        let (width, height) = SIZE;
        let all = || self.series.iter().flat_map(|series| &series.points);
        let x = Axis::new(all().map(|point| point.0), None, self.x_is_log).to(left, width - right);
        let ys = all().map(|point| point.1).chain(self.mark.iter().map(|mark| mark.0));
        let y = Axis::new(ys, Some(self.y_range.unwrap_or((0.0, 0.0))), false).to(height - bottom, top);
        let mut svg = format!(
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">\n",
            escape(&self.title)
        );
        self.draw_axes(&mut svg, &x, &y);
        for (index, series) in self.series.iter().enumerate() {
            series.draw(&mut svg, index, |(px, py)| (x.place(px), y.place(py)));
        }
        svg + "</svg>"
    }

    fn draw_axes(&self, svg: &mut String, x: &Axis, y: &Axis) {
        let (left, _, right, bottom) = MARGIN;
        let (right, bottom) = (SIZE.0 - right, SIZE.1 - bottom);
        for (value, at) in y.ticks() {
            let (from, below, value) = (left - 6.0, at + 4.0, label(value));
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{from}\" y=\"{below:.1}\" text-anchor=\"end\">{value}</text>"
            );
        }
        for (value, at) in x.ticks() {
            let (end, below, value) = (bottom + 4.0, bottom + 18.0, label(value));
            let _ = writeln!(
                svg,
                "<line class=\"tick\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{end}\"/>\
                 <text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{value}</text>"
            );
        }
        let (middle, under) = ((left + right) / 2.0, SIZE.1 - 6.0);
        let _ = writeln!(
            svg,
            "<text class=\"axis\" x=\"{middle}\" y=\"{under}\" text-anchor=\"middle\">{}</text>\
             <text class=\"axis\" x=\"2\" y=\"14\">{}</text>",
            escape(self.x),
            escape(self.y)
        );
        if let Some((value, name)) = &self.mark {
            let at = y.place(*value);
            let _ = writeln!(
                svg,
                "<line class=\"mark\" x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                at - 5.0,
                escape(name)
            );
        }
    }
}

impl Series {
    fn draw(&self, svg: &mut String, index: usize, place: impl Fn((f64, f64)) -> (f64, f64)) {
        let class = color(index);
        let points: Vec<_> = self.points.iter().map(|&point| place(point)).collect();
        let path: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(svg, "<polyline class=\"line {class}\" points=\"{}\"/>", path.join(" "));
        if self.dots {
            for ((x, y), (value, height)) in points.iter().zip(&self.points) {
                let _ = writeln!(
                    svg,
                    "<circle class=\"dot {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{}: {} → {}</title></circle>",
                    escape(&self.name),
                    label(*value),
                    label(*height)
                );
            }
        }
    }
}

/// The class of a series' colour.
pub(super) fn color(index: usize) -> String {
    format!("c{}", index % 6)
}

/// Text as HTML has it.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
