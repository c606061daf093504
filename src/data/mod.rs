//! Photographs in, batches out.
