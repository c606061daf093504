//! A libcuda that interprets PTX on the CPU, under checks that hardware does not make.

mod driver;
