//! Text that must not be seen.

use std::fmt;

/// A private key in PEM, or a text that holds one. `Debug` hides it; [`Secret::expose`] is the only way to the text,
/// and a file that receives it is 0600 before its first byte.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for a file or a TLS stack; never for a message.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}
