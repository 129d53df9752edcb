//! How the agent is kept alive.
