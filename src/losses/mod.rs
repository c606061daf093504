//! One formula per file: flow matching, preference objectives, negatives.
