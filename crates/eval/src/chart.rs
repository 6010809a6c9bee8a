//! Accuracy against chain length, drawn as a self-contained SVG.

use std::fmt::Write;

use crate::score::Report;

const WIDTH: f64 = 780.0;
const PANEL_HEIGHT: f64 = 220.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 210.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 40.0;
/// Room for a length below the axis.
const LABEL: f64 = 24.0;
/// Distinguishable to most eyes, dark enough on white (Okabe and Ito's palette).
const COLOURS: [&str; 6] = [
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
];

/// Draws one panel a family and one line a report; `reports` pairs a label with what it measured.
pub fn accuracy_svg(reports: &[(String, Report)]) -> String {
    let mut families: Vec<&str> = Vec::new();
    for family in reports.iter().flat_map(|(_, r)| &r.families) {
        if !families.contains(&family.family.as_str()) {
            families.push(&family.family);
        }
    }
    let axis = Axis::over(reports);
    let height = PANEL_HEIGHT * families.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (i, family) in families.iter().enumerate() {
        let _ = writeln!(
            svg,
            "<g transform=\"translate(0 {})\">",
            PANEL_HEIGHT * i as f64
        );
        panel(&mut svg, family, reports, &axis);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

/// Lengths that were measured. They double, mostly, so the axis is logarithmic.
struct Axis {
    /// In order, each once.
    steps: Vec<usize>,
}

impl Axis {
    fn over(reports: &[(String, Report)]) -> Axis {
        let families = reports.iter().flat_map(|(_, r)| &r.families);
        let lengths = families.flat_map(|f| &f.by_length);
        let mut steps: Vec<usize> = lengths.map(|l| l.steps.max(1)).collect();
        steps.sort_unstable();
        steps.dedup();
        Axis { steps }
    }

    /// Where a chain of `steps` lies; in the middle where there is but one length.
    fn x(&self, steps: usize) -> f64 {
        let log = |steps: usize| (steps.max(1) as f64).log2();
        let (first, last) = match (self.steps.first(), self.steps.last()) {
            (Some(&first), Some(&last)) if first < last => (log(first), log(last)),
            _ => (log(steps) - 1.0, log(steps) + 1.0),
        };
        LEFT + (log(steps) - first) / (last - first) * (WIDTH - LEFT - RIGHT)
    }

    /// Lengths to write below: the longest, and those before it that have room.
    fn labels(&self) -> Vec<usize> {
        let mut left = f64::INFINITY;
        let mut labels = Vec::new();
        for &steps in self.steps.iter().rev() {
            let x = self.x(steps);
            if x + LABEL <= left {
                labels.push(steps);
                left = x;
            }
        }
        labels
    }
}

fn y(accuracy: f64) -> f64 {
    TOP + (1.0 - accuracy) * (PANEL_HEIGHT - TOP - BOTTOM)
}

fn panel(svg: &mut String, family: &str, reports: &[(String, Report)], axis: &Axis) {
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"20\" font-weight=\"bold\">{family}</text>"
    );
    axes(svg, axis);
    for (i, (label, report)) in reports.iter().enumerate() {
        let Some(found) = report.families.iter().find(|f| f.family == family) else {
            continue;
        };
        let colour = COLOURS[i % COLOURS.len()];
        let points: Vec<(f64, f64)> = found
            .by_length
            .iter()
            .map(|l| (axis.x(l.steps), y(l.accuracy)))
            .collect();
        let path: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
            path.join(" ")
        );
        for (x, y) in points {
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
            );
        }
        let (x, y) = (WIDTH - RIGHT + 18.0, TOP + 6.0 + 18.0 * i as f64);
        let accuracy = found.accuracy * 100.0;
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{y}\" fill=\"{colour}\">{} {accuracy:.1} %</text>",
            escape(label)
        );
    }
}

fn axes(svg: &mut String, axis: &Axis) {
    let right = WIDTH - RIGHT;
    for percent in [0, 25, 50, 75, 100] {
        let y = y(f64::from(percent) / 100.0);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{y}\" x2=\"{right}\" y2=\"{y}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{percent} %</text>",
            LEFT - 8.0,
            y + 4.0
        );
    }
    for steps in axis.labels() {
        let (x, y) = (axis.x(steps), PANEL_HEIGHT - BOTTOM + 18.0);
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{steps}</text>"
        );
    }
    let middle = (LEFT + right) / 2.0;
    let y = PANEL_HEIGHT - 6.0;
    let _ = writeln!(
        svg,
        "<text x=\"{middle}\" y=\"{y}\" text-anchor=\"middle\">steps</text>"
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problems::Family;
    use crate::score::Outcome;

    #[test]
    fn every_report_has_a_line_in_every_panel_it_measured() {
        let outcome = |family, steps, correct| Outcome {
            family,
            steps,
            correct,
            first_wrong_step: None,
            inflation: 1.0,
        };
        let both = [
            outcome(Family::Boxes, 1, true),
            outcome(Family::Columns, 64, false),
        ];
        let one = [outcome(Family::Boxes, 8, false)];
        let svg = accuracy_svg(&[
            ("BF16".into(), Report::of(&both, 1.0)),
            ("<INT4>".into(), Report::of(&one, 1.0)),
        ]);
        assert_eq!(svg.matches("<polyline").count(), 3);
        assert!(svg.contains("&lt;INT4&gt; 0.0 %"));
        assert!(svg.contains("points=\"60.0,34.0\""), "{svg}");
        for steps in ["1", "8", "64"] {
            assert!(svg.contains(&format!("text-anchor=\"middle\">{steps}<")));
        }
        let alone = accuracy_svg(&[("x".into(), Report::of(&one, 1.0))]);
        assert!(!alone.contains("NaN") && alone.contains(">8<"), "{alone}");
    }
}
