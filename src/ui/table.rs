//! Tables as kubectl prints them: no lines, columns three spaces apart.

use comfy_table::{ContentArrangement, Table, presets};

/// Lays out `rows` below `headers`; the result ends with a line end.
///
/// With a `width` (that of the terminal) long cells are wrapped to it; without one every row is one line.
pub fn table(headers: &[&str], rows: &[Vec<String>], width: Option<u16>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headers.to_vec());
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    table.add_rows(rows.to_vec());
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = [
            row(["etcd", "healthy", ""]),
            row(["kube-apiserver", "waiting", "/readyz 500: poststarthook/rbac/bootstrap-roles"]),
        ];
        assert_eq!(
            table(&["COMPONENT", "STATE", "MESSAGE"], &rows, None),
            "COMPONENT        STATE     MESSAGE\n\
             etcd             healthy\n\
             kube-apiserver   waiting   /readyz 500: poststarthook/rbac/bootstrap-roles\n"
        );
        let narrow = table(&["COMPONENT", "STATE", "MESSAGE"], &rows, Some(50));
        assert!(narrow.lines().count() > 3 && narrow.lines().all(|line| line.len() <= 50), "{narrow}");
    }
}
