//! An in-memory runtime with scripted faults, for tests.
