//! Puts tables into `BENCHMARKS.md`, between `<!-- table: name -->` and `<!-- end -->`.

use crate::Failure;

/// `document` with these tables in their places.
///
/// # Errors
/// A table that has no place.
pub fn with_tables(document: &str, tables: &[(&str, String)]) -> Result<String, Failure> {
    let mut document = document.to_owned();
    for (name, table) in tables {
        let start = format!("<!-- table: {name} -->");
        let place = document
            .find(&start)
            .map(|at| at + start.len())
            .and_then(|from| document[from..].find("<!-- end -->").map(|length| from..from + length));
        let place = place.ok_or_else(|| format!("BENCHMARKS.md has no place for the table {name}"))?;
        document.replace_range(place, &format!("\n\n{table}\n\n"));
    }
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::with_tables;

    #[test]
    fn only_the_named_place_changes() {
        let document = "a\n<!-- table: x -->old<!-- end -->\nb\n<!-- table: y -->old<!-- end -->\n";
        let written = with_tables(document, &[("y", "new".to_owned())]).unwrap();
        assert_eq!(written, "a\n<!-- table: x -->old<!-- end -->\nb\n<!-- table: y -->\n\nnew\n\n<!-- end -->\n");
        assert!(with_tables(document, &[("z", String::new())]).is_err());
    }
}
