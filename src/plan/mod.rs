//! What differs between configuration and host, and the steps that mend it.
