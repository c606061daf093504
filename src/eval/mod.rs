//! Honest numbers.
