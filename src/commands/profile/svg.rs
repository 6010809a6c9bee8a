//! Pictures over time: stacked bands, lines over them, and a dashed limit. Plain SVG whose colours
//! come from the page's variables, so that it reads on light and dark ground.

use std::fmt::Write;

use crate::page::escape;

/// Most points a band is drawn with.
const MAX_POINTS: usize = 360;
const WIDTH: f64 = 920.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 40.0;

/// Values that stand on those of the band below.
pub struct Band {
    /// In the legend.
    pub name: String,
    /// Which of the page's colours, from 1.
    pub colour: usize,
    /// One for each x.
    pub values: Vec<f64>,
}

/// What is drawn.
pub struct Picture<'a> {
    /// Under the horizontal axis.
    pub x_label: &'a str,
    /// Beside the vertical one.
    pub y_label: &'a str,
    /// Height in pixels.
    pub height: f64,
    /// Where values stand; increasing.
    pub x: Vec<f64>,
    /// From the bottom up.
    pub bands: Vec<Band>,
    /// A line over all of them: its name, and a value for each x.
    pub line: Option<(&'a str, Vec<f64>)>,
    /// A dashed limit: its name and value.
    pub limit: Option<(String, f64)>,
    /// Where something ends and something else begins: x and what begins.
    pub borders: Vec<(f64, &'a str)>,
}

impl Picture<'_> {
    /// The SVG.
    pub fn draw(&self) -> String {
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{} over {}\">\n",
            self.height, self.y_label, self.x_label
        );
        if self.x.len() < 2 {
            svg += "<text x=\"64\" y=\"60\" class=\"tick\">too few points to draw</text></svg>\n";
            return svg;
        }
        let shown = self.shown();
        self.axes(&mut svg);
        let mut floor = vec![0.0; self.x.len()];
        for band in &self.bands {
            let ceiling: Vec<f64> = floor.iter().zip(&band.values).map(|(f, v)| f + v).collect();
            self.band(&mut svg, band, &floor, &ceiling, &shown);
            floor = ceiling;
        }
        if let Some((name, values)) = &self.line {
            let points: Vec<String> = shown.iter().map(|&i| self.point(i, values[i])).collect();
            let points = points.join(" ");
            let _ = writeln!(
                svg,
                "<polyline class=\"line\" points=\"{points}\"><title>{}</title></polyline>",
                escape(name)
            );
        }
        self.limit(&mut svg);
        for (x, name) in &self.borders {
            let x = self.left(*x);
            let _ = writeln!(
                svg,
                "<line class=\"border\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                self.height - BOTTOM,
                x + 4.0,
                TOP + 12.0,
                escape(name)
            );
        }
        svg += "</svg>\n";
        svg
    }

    /// Names and colours of what is drawn, as HTML.
    pub fn legend(&self) -> String {
        let mut html = String::from("<p class=\"legend\">");
        for band in self.bands.iter().rev() {
            let _ = write!(
                html,
                "<span><i class=\"c{}\"></i>{}</span>",
                band.colour,
                escape(&band.name)
            );
        }
        if let Some((name, _)) = &self.line {
            let _ = write!(html, "<span><i class=\"ink\"></i>{}</span>", escape(name));
        }
        html + "</p>\n"
    }

    /// Indices of the points that are drawn: all, or evenly many and the last.
    fn shown(&self) -> Vec<usize> {
        let count = self.x.len();
        let stride = count.div_ceil(MAX_POINTS);
        let mut shown: Vec<usize> = (0..count).step_by(stride).collect();
        if shown.last() != Some(&(count - 1)) {
            shown.push(count - 1);
        }
        shown
    }

    fn top(&self) -> f64 {
        let sum = |i: usize| self.bands.iter().map(|band| band.values[i]).sum::<f64>();
        let highest = (0..self.x.len()).map(|i| {
            let line = self.line.as_ref().map_or(0.0, |(_, values)| values[i]);
            sum(i).max(line)
        });
        let limit = self.limit.as_ref().map_or(0.0, |(_, value)| *value);
        highest.fold(limit, f64::max).max(1e-9) * 1.06
    }

    fn left(&self, x: f64) -> f64 {
        let (first, last) = (self.x[0], self.x[self.x.len() - 1]);
        let share = (x - first) / (last - first).max(1e-12);
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn down(&self, y: f64) -> f64 {
        let share = y / self.top();
        self.height - BOTTOM - share * (self.height - TOP - BOTTOM)
    }

    fn point(&self, i: usize, y: f64) -> String {
        format!("{:.1},{:.1}", self.left(self.x[i]), self.down(y))
    }

    fn band(&self, svg: &mut String, band: &Band, floor: &[f64], ceiling: &[f64], shown: &[usize]) {
        let over = shown.iter().map(|&i| self.point(i, ceiling[i]));
        let under = shown.iter().rev().map(|&i| self.point(i, floor[i]));
        let points: Vec<String> = over.chain(under).collect();
        let _ = writeln!(
            svg,
            "<polygon class=\"c{}\" points=\"{}\"><title>{}</title></polygon>",
            band.colour,
            points.join(" "),
            escape(&band.name)
        );
    }

    fn limit(&self, svg: &mut String) {
        let Some((name, value)) = &self.limit else {
            return;
        };
        let y = self.down(*value);
        let _ = writeln!(
            svg,
            "<line class=\"limit\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            WIDTH - RIGHT,
            WIDTH - RIGHT,
            y - 5.0,
            escape(name)
        );
    }

    fn axes(&self, svg: &mut String) {
        for y in ticks(0.0, self.top(), 5) {
            let at = self.down(y);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                at + 4.0,
                number(y)
            );
        }
        let bottom = self.height - BOTTOM;
        let (first, last) = (self.x[0], self.x[self.x.len() - 1]);
        for x in ticks(first, last, 8) {
            let _ = writeln!(
                svg,
                "<text class=\"tick\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                self.left(x),
                bottom + 17.0,
                number(x)
            );
        }
        let _ = writeln!(
            svg,
            "<text class=\"axis\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\
             <text class=\"axis\" x=\"{:.1}\" y=\"16\">{}</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            self.height - 6.0,
            escape(self.x_label),
            8.0,
            escape(self.y_label)
        );
    }
}

/// Round numbers between two values, about `count` of them.
fn ticks(from: f64, to: f64, count: usize) -> Vec<f64> {
    let raw = (to - from) / count as f64;
    if !(raw.is_finite() && raw > 0.0) {
        return vec![from];
    }
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= raw)
        .unwrap_or(raw);
    let first = (from / step).ceil() as i64;
    (first..)
        .map(|i| i as f64 * step)
        .take_while(|tick| *tick <= to + step * 1e-9)
        .collect()
}

/// Without needless digits.
fn number(value: f64) -> String {
    let text = match value.abs() {
        v if v >= 10.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.1}"),
        v if v >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 47.0, 5), [0.0, 10.0, 20.0, 30.0, 40.0]);
        assert_eq!(ticks(3.0, 9.0, 4), [4.0, 6.0, 8.0]);
        assert_eq!(ticks(5.0, 5.0, 4), [5.0]);
        let labels = ticks(0.0, 0.9, 5).into_iter().map(number);
        assert_eq!(
            labels.collect::<Vec<_>>(),
            ["0", "0.2", "0.4", "0.6", "0.8"]
        );
    }

    #[test]
    fn pictures_are_closed_whatever_they_show() {
        for count in [0usize, 1, 2, 1000] {
            let values: Vec<f64> = (0..count).map(|i| i as f64).collect();
            let picture = Picture {
                x_label: "s",
                y_label: "MiB",
                height: 300.0,
                x: values.clone(),
                bands: vec![Band {
                    name: "a<b".into(),
                    colour: 1,
                    values: values.clone(),
                }],
                line: Some(("all", values)),
                limit: Some(("most".into(), 7.0)),
                borders: vec![(0.5, "then")],
            };
            let svg = picture.draw();
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
            assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains("a<b"));
            assert!(svg.matches(',').count() < 3 * MAX_POINTS + 30);
        }
    }
}
