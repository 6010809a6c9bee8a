//! Reports as pages that need nothing else: one file, no scripts, no fonts, nothing to fetch.

use std::fmt::Write;

const STYLE: &str = include_str!("page.css");

/// A page of `body`, which is HTML, under its title, which is text.
pub fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style></head><body><main>\n\
         <h1>{title}</h1>\n{body}</main></body></html>\n",
        title = escape(title),
    )
}

/// Names and values in a row.
pub fn facts(facts: &[(&str, String)]) -> String {
    let mut html = String::from("<dl class=\"facts\">");
    for (name, value) in facts {
        let value = escape(value);
        let _ = write!(html, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    html + "</dl>\n"
}

/// A table of text; the first column is flush left.
pub fn table<H: AsRef<str>>(heading: &[H], rows: &[Vec<String>]) -> String {
    let row = |tag: &str, cells: &mut dyn Iterator<Item = &str>| -> String {
        let cells: String = cells
            .map(|c| format!("<{tag}>{}</{tag}>", escape(c)))
            .collect();
        format!("<tr>{cells}</tr>")
    };
    let heading = row("th", &mut heading.iter().map(AsRef::as_ref));
    let rows: String = rows
        .iter()
        .map(|cells| row("td", &mut cells.iter().map(String::as_str)))
        .collect();
    format!("<table><thead>{heading}</thead><tbody>{rows}</tbody></table>\n")
}

/// Text that is safe between tags and in attributes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        let page = document("a<b", &table(&["\"x\""], &[vec!["&".into()]]));
        assert!(page.contains("<title>a&lt;b</title>") && page.contains("<h1>a&lt;b</h1>"));
        assert!(page.contains("<tr><th>&quot;x&quot;</th></tr>"));
        assert!(page.contains("<tr><td>&amp;</td></tr>"));
        assert!(facts(&[("n", "<".into())]).contains("<dt>n</dt><dd>&lt;</dd>"));
    }
}
