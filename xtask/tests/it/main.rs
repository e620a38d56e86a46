//! Tidy is a test.

mod tidy;
