//! The multiples of the bare handler as bars, in SVG.

use std::fmt::Write;

use crate::report::Results;
use crate::sample::Measurement;

const WIDTH: f64 = 860.0;
const LABELS: f64 = 260.0;
const BAR: f64 = 18.0;
const STEP: f64 = 24.0;
/// The text to the right of the longest bar.
const VALUES: f64 = 150.0;

/// A chart of the smallest bodies: in process, and the server's processor time over HTTP.
pub fn draw(results: &Results) -> String {
    let mut body = String::new();
    let mut y = 30.0;
    panel(&mut body, &mut y, "Time per request in process, as a multiple of a bare handler", &results.in_process);
    panel(&mut body, &mut y, "Server's processor time per request over HTTP, likewise", &results.http.cpu);
    let _ = write!(body, r#"<text x="16" y="{y}" class="small">{}</text>"#, escaped(&caption(results)));
    let height = y + 20.0;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">
<style>.small {{ font-size: 11px; fill: #555 }} .title {{ font-weight: bold }}</style>
<rect width="{WIDTH}" height="{height}" fill="#fff"/>
{body}</svg>
"##
    )
}

fn caption(results: &Results) -> String {
    format!("JSON body of 30 bytes; median of {} rounds, the line spans all of them.", results.rounds)
}

fn panel(svg: &mut String, y: &mut f64, title: &str, measured: &[Measurement]) {
    let bars: Vec<&Measurement> =
        measured.iter().filter(|one| one.bytes == 30 && one.row != "bare" && one.subject != "floor").collect();
    if bars.is_empty() {
        return;
    }
    let longest = bars.iter().map(|one| one.ratios.median()).fold(1.0, f64::max);
    let scale = (WIDTH - LABELS - VALUES) / longest;
    let _ = writeln!(svg, r#"<text x="16" y="{y}" class="title">{}</text>"#, escaped(title));
    *y += 14.0;
    let top = *y;
    for one in bars {
        let (median, low, high) = (one.ratios.median(), one.ratios.min(), one.ratios.max());
        let colour = if one.subject == "idem" { "#2f6f4f" } else { "#9db4c8" };
        let label = escaped(&format!("{}, {}", one.subject, one.row));
        let (text, middle) = (*y + 14.0, *y + BAR / 2.0);
        let _ = writeln!(svg, r#"<text x="{}" y="{text}" text-anchor="end">{label}</text>"#, LABELS - 8.0);
        let width = median * scale;
        let _ = writeln!(svg, r#"<rect x="{LABELS}" y="{y}" width="{width:.1}" height="{BAR}" fill="{colour}"/>"#);
        let end = |ratio: f64| LABELS + ratio.min(longest * 1.1) * scale;
        let _ = writeln!(
            svg,
            r##"<line x1="{:.1}" x2="{:.1}" y1="{middle}" y2="{middle}" stroke="#222"/>"##,
            end(low),
            end(high),
        );
        let after = end(high).max(LABELS + width) + 6.0;
        let _ = writeln!(svg, r#"<text x="{after:.1}" y="{text}">{median:.2}</text>"#);
        *y += STEP;
    }
    let bare = LABELS + scale;
    let _ = writeln!(
        svg,
        r##"<line x1="{bare:.1}" x2="{bare:.1}" y1="{top}" y2="{y}" stroke="#b33" stroke-dasharray="4 3"/>"##
    );
    *y += 14.0;
    let _ = writeln!(svg, r##"<text x="{bare:.1}" y="{y}" class="small" text-anchor="middle">bare</text>"##);
    *y += 34.0;
}

/// Text, escaped for SVG.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
