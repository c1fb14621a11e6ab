//! First executions per second against tasks, as lines in SVG. Both axes are logarithmic: the stores are far apart.

use std::fmt::Write;

use crate::chart::escaped;
use crate::stores::report::Results;
use crate::stores::throughput::Throughput;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 640.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 390.0;
/// The least room between the names at the ends of the lines.
const LINE: f64 = 16.0;
const COLOURS: [&str; 6] = ["#2f6f4f", "#b33939", "#2c5d9b", "#8fb3dc", "#7a4b9a", "#c3a4d6"];

/// The chart of all places.
pub fn draw(results: &Results) -> String {
    let cells = &results.throughput;
    let mut places: Vec<&str> = cells.iter().map(|cell| cell.place).collect();
    places.dedup();
    let rates = || cells.iter().map(|cell| cell.rate.median());
    let low = rates().fold(f64::INFINITY, f64::min).log10().floor();
    let high = rates().fold(f64::NEG_INFINITY, f64::max).log10().ceil();
    let most = cells.iter().map(|cell| cell.tasks).max().unwrap_or(1).max(2) as f64;
    let x = |tasks: usize| LEFT + (RIGHT - LEFT) * (tasks as f64).log2() / most.log2();
    let y = |rate: f64| BOTTOM - (BOTTOM - TOP) * (rate.log10() - low) / (high - low).max(1.0);

    let mut body = String::new();
    let mut decade = low;
    while decade <= high {
        let at = y(10_f64.powf(decade));
        let _ = writeln!(body, r##"<line x1="{LEFT}" x2="{RIGHT}" y1="{at:.1}" y2="{at:.1}" stroke="#ddd"/>"##);
        let (right, text, rate) = (LEFT - 8.0, at + 4.0, 10_f64.powf(decade));
        let _ = writeln!(body, r#"<text x="{right}" y="{text:.1}" text-anchor="end">{rate:.0}</text>"#);
        decade += 1.0;
    }
    let mut tasks: Vec<usize> = cells.iter().map(|cell| cell.tasks).collect();
    tasks.sort_unstable();
    tasks.dedup();
    for tasks in tasks {
        let (at, text) = (x(tasks), BOTTOM + 20.0);
        let _ = writeln!(body, r#"<text x="{at:.1}" y="{text}" text-anchor="middle">{tasks}</text>"#);
    }

    let mut ends = Vec::new();
    for (place, colour) in places.iter().zip(COLOURS.iter().cycle()) {
        let line: Vec<&Throughput> = cells.iter().filter(|cell| cell.place == *place).collect();
        let points: Vec<String> =
            line.iter().map(|cell| format!("{:.1},{:.1}", x(cell.tasks), y(cell.rate.median()))).collect();
        let points = points.join(" ");
        let _ = writeln!(body, r#"<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>"#);
        for cell in &line {
            let (at, rate) = (x(cell.tasks), &cell.rate);
            let (from, to, middle) = (y(rate.min()), y(rate.max()), y(rate.median()));
            let _ = writeln!(
                body,
                r#"<line x1="{at:.1}" x2="{at:.1}" y1="{from:.1}" y2="{to:.1}" stroke="{colour}"/><circle cx="{at:.1}" cy="{middle:.1}" r="3" fill="{colour}"/>"#
            );
        }
        ends.extend(line.last().map(|cell| (y(cell.rate.median()), *place, *colour)));
    }
    ends.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut free = TOP;
    for (end, place, colour) in ends {
        let at = (end + 4.0).max(free);
        free = at + LINE;
        let (x, name) = (RIGHT + 12.0, escaped(place));
        let _ = writeln!(body, r#"<text x="{x}" y="{at:.1}" fill="{colour}">{name}</text>"#);
    }
    let caption = format!("tasks at once; median of {} rounds, the upright lines span all of them", results.rounds);
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">
<style>.small {{ font-size: 11px; fill: #555 }} .title {{ font-weight: bold }}</style>
<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>
<text x="16" y="26" class="title">First executions per second: begin and complete of new keys</text>
{body}<text x="{LEFT}" y="{:.1}" class="small">{caption}</text>
</svg>
"##,
        BOTTOM + 44.0,
    )
}
