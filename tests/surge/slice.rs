//! The entry of the `kubernetes` Service.
