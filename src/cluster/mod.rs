//! Objects in the API server.
