//! A question that a person answers.

use std::io::{self, BufRead, IsTerminal as _};

use super::printer::Printer;

/// How a question was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// `y` or `yes`.
    Yes,
    /// Anything else, or nothing.
    No,
    /// Nobody is there to ask: stdin is not a terminal. The caller names the flag that answers instead.
    Nobody,
}

/// Asks `question` on stderr and reads the answer from stdin; the default is no.
///
/// Blocks until a line is there.
pub fn confirm(printer: &Printer, question: &str) -> io::Result<Answer> {
    let stdin = io::stdin();
    if stdin.is_terminal() { ask(printer, question, &mut stdin.lock()) } else { Ok(Answer::Nobody) }
}

fn ask(printer: &Printer, question: &str, input: &mut impl BufRead) -> io::Result<Answer> {
    printer.prompt(&format!("{question} [y/N] "));
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        // Ctrl-D leaves the cursor behind the question.
        printer.prompt("\n");
    }
    let yes = matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes");
    Ok(if yes { Answer::Yes } else { Answer::No })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::mode::{Mode, Surroundings};

    #[test]
    fn only_yes_is_yes() {
        for (line, expected) in [
            ("y\n", Answer::Yes),
            (" YES \n", Answer::Yes),
            ("n\n", Answer::No),
            ("yep\n", Answer::No),
            ("\n", Answer::No),
            ("", Answer::No),
        ] {
            let (printer, captured) = Printer::capture(Mode::choose(&Surroundings::default()));
            assert_eq!(ask(&printer, "Remove it all?", &mut line.as_bytes()).unwrap(), expected, "{line:?}");
            let end = if line.is_empty() { "\n" } else { "" };
            assert_eq!(captured.err(), format!("Remove it all? [y/N] {end}"));
        }
    }
}
