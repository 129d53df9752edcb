//! Docker, through its HTTP interface.
