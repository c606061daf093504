//! Stages, optimizer, checkpoints, log, report.
