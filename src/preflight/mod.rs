//! Small named checks of the host, all run before any is reported.
