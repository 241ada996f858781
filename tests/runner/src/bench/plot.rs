// SPDX-License-Identifier: GPL-2.0

//! report.html and its plots.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{anyhow, Context, Result};
use plotters::prelude::*;

use super::{Row, STEADY};

/// The plots: file name, title, label of the x axis, the series in it (by [`Row::plot`]).
const PLOTS: &[(&str, &str, &str, &[&str])] = &[
    (
        "dirty",
        "fdatasync: instructions per dirty page",
        "dirty pages",
        &["contiguous", "scattered by 2", "scattered by 512"],
    ),
    (
        "mapping",
        "fdatasync of 1 dirty page: instructions",
        "size of the mapping in MiB",
        &["mapping"],
    ),
    (
        "threads",
        "touch and fdatasync 64 pages: instructions per page, all threads",
        "threads",
        &["one file", "separate files"],
    ),
];

/// Writes report.html into `dir`, with the plots beside and in it.
pub fn write_report(dir: &Path, provenance: &str, rows: &[Row]) -> Result<()> {
    let mut html = String::from(HEAD);
    write!(
        html,
        "<h1>rust_pmem against nd_pmem and fs/dax.c</h1><p>{}</p>",
        escape(provenance)
    )?;
    html.push_str("<p>Guest instructions per unit, medians; QEMU with <code>-icount shift=0</code>. Both sides in one boot, measured in turns. Lower is better.</p>");
    for (name, title, x, series) in PLOTS {
        let wanted: Vec<_> = rows
            .iter()
            .filter(|r| r.plot.as_deref().is_some_and(|p| series.contains(&p)))
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let mut svg = String::new();
        draw(&mut svg, title, x, provenance, series, &wanted)
            .map_err(|e| anyhow!("{name}: {e}"))?;
        let path = dir.join(format!("bench-{name}.svg"));
        fs::write(&path, &svg).with_context(|| path.display().to_string())?;
        html.push_str(&svg);
    }
    html.push_str(
        "<table><tr><th>case<th>fs<th>unit<th>C<th>ours<th>ratio<th>target<th>spread (quartiles)</tr>",
    );
    for row in rows {
        let number = |n: Option<f64>, digits| n.map_or("-".into(), |n| format!("{n:.digits$}"));
        let class = match row.verdict() {
            "met" => "met",
            "NOT MET" => "missed",
            _ => "",
        };
        let steady = if row.spread() < STEADY {
            ""
        } else {
            " (not steady)"
        };
        write!(
            html,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td class='{class}'>{}<td>{}<td>{:.1} %{steady}</tr>",
            escape(&row.case),
            row.fs,
            row.unit,
            number(Row::median(&row.c), 0),
            number(Row::median(&row.ours), 0),
            number(row.ratio(), 2),
            number(row.target, 2),
            row.spread() * 100.0
        )?;
    }
    html.push_str("</table></body></html>\n");
    let path = dir.join("report.html");
    fs::write(&path, html).with_context(|| path.display().to_string())
}

const HEAD: &str =
    "<!DOCTYPE html><html><head><meta charset='utf-8'><title>rust_pmem: benchmarks</title><style>
body { font: 14px sans-serif; max-width: 70em; margin: 2em auto }
table { border-collapse: collapse } td, th { padding: 2px 10px; border-bottom: 1px solid #ccc }
td:nth-child(n+4) { text-align: right } th { text-align: left }
.met { background: #d4f0d4 } .missed { background: #f6d0d0 }
</style></head><body>";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// One plot: a line per file system, series and side.
fn draw(
    svg: &mut String,
    title: &str,
    x_label: &str,
    provenance: &str,
    series: &[&str],
    rows: &[&Row],
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, (900, 520)).into_drawing_area();
    area.fill(&WHITE)?;
    let all = |pick: fn(&Row) -> Option<f64>| rows.iter().filter_map(move |r| pick(r));
    let highest = all(|r| Row::median(&r.c))
        .chain(all(|r| Row::median(&r.ours)))
        .fold(1.0, f64::max);
    let lowest_x = all(|r| r.x).fold(f64::INFINITY, f64::min);
    let highest_x = all(|r| r.x).fold(lowest_x * 2.0, f64::max);
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(45)
        .y_label_area_size(70)
        .build_cartesian_2d(
            (lowest_x..highest_x).log_scale().base(2.0),
            0.0..highest * 1.1,
        )?;
    chart
        .configure_mesh()
        .x_desc(format!("{x_label}    [{provenance}]"))
        .y_desc("guest instructions")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .draw()?;
    let colours = [RED, BLUE, GREEN, MAGENTA, CYAN, RGBColor(160, 100, 0)];
    let mut number = 0;
    for fs in ["ext4", "xfs"] {
        for name in series {
            let colour = colours[number % colours.len()];
            number += 1;
            for (side, pick) in [
                ("C", (|r| &r.c) as fn(&Row) -> &Option<Vec<f64>>),
                ("ours", |r| &r.ours),
            ] {
                let points: Vec<(f64, f64)> = rows
                    .iter()
                    .filter(|r| r.fs == fs && r.plot.as_deref() == Some(name))
                    .filter_map(|r| Some((r.x?, Row::median(pick(r))?)))
                    .collect();
                if points.is_empty() {
                    continue;
                }
                let ours = side == "ours";
                let style = colour.stroke_width(if ours { 3 } else { 1 });
                let marks = points.clone();
                chart
                    .draw_series(LineSeries::new(points, style))?
                    .label(format!("{fs}, {name}, {side}"))
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], style));
                let size = if ours { 4 } else { 2 };
                chart.draw_series(
                    marks
                        .into_iter()
                        .map(|p| Circle::new(p, size, colour.filled())),
                )?;
            }
        }
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    area.present()?;
    Ok(())
}
