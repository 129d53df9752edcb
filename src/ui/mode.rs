//! How to talk, decided once from what is around us.

/// What is around the command, as the command line found it.
#[expect(clippy::struct_excessive_bools, reason = "each is one fact of its own, not a state")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// stderr is a terminal.
    pub stderr_terminal: bool,
    /// `TERM` is unset or `dumb`: the terminal cannot move its cursor.
    pub dumb_terminal: bool,
    /// `CI` is set and not empty.
    pub ci: bool,
    /// `NO_COLOR` is set and not empty (<https://no-color.org>).
    pub no_color: bool,
    /// What was asked for by `-q` and `-v`.
    pub verbosity: Verbosity,
    /// What was asked for by `-o`.
    pub format: Format,
}

/// How much is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verbosity {
    /// Results, warnings and errors.
    Quiet,
    /// Also progress.
    #[default]
    Normal,
    /// Also logs.
    Logs,
}

/// How results are written to stdout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON document, for programs.
    Json,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Bars and spinners that are drawn over.
    Bars,
    /// A line for each change.
    Lines,
    /// Not at all.
    Hidden,
}

/// How to talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// Progress, on stderr.
    pub progress: Progress,
    /// Results, on stdout.
    pub format: Format,
    /// Colours, on stderr; stdout has none.
    pub color: bool,
}

impl Mode {
    /// The mode for `around`.
    ///
    /// Bars need a capable terminal to themselves: logs would be drawn over, and what CI records is read later.
    /// A JSON result says it all, and who asked for it is a program: no progress beside it.
    pub fn choose(around: &Surroundings) -> Self {
        let capable = around.stderr_terminal && !around.dumb_terminal;
        let progress = match (around.verbosity, around.format) {
            (Verbosity::Quiet, _) | (Verbosity::Normal, Format::Json) => Progress::Hidden,
            (Verbosity::Normal, Format::Text) if capable && !around.ci => Progress::Bars,
            (Verbosity::Normal | Verbosity::Logs, _) => Progress::Lines,
        };
        Self { progress, format: around.format, color: capable && !around.no_color }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surroundings_decide() {
        let terminal = Surroundings { stderr_terminal: true, ..Surroundings::default() };
        let pipe = Surroundings::default();
        for (what, around, progress, color) in [
            ("terminal", terminal, Progress::Bars, true),
            ("pipe", pipe, Progress::Lines, false),
            ("dumb terminal", Surroundings { dumb_terminal: true, ..terminal }, Progress::Lines, false),
            ("CI with a terminal", Surroundings { ci: true, ..terminal }, Progress::Lines, true),
            ("no colour", Surroundings { no_color: true, ..terminal }, Progress::Bars, false),
            ("logs", Surroundings { verbosity: Verbosity::Logs, ..terminal }, Progress::Lines, true),
            ("quiet", Surroundings { verbosity: Verbosity::Quiet, ..terminal }, Progress::Hidden, true),
            ("quiet pipe", Surroundings { verbosity: Verbosity::Quiet, ..pipe }, Progress::Hidden, false),
            ("JSON", Surroundings { format: Format::Json, ..terminal }, Progress::Hidden, true),
            (
                "JSON with logs",
                Surroundings { format: Format::Json, verbosity: Verbosity::Logs, ..pipe },
                Progress::Lines,
                false,
            ),
        ] {
            assert_eq!(Mode::choose(&around), Mode { progress, format: around.format, color }, "{what}");
        }
    }
}
