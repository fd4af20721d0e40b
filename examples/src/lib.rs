//! The examples are in `examples/`; `README.md` gives the order to read them in.
