//! The device's own clock.

use asasr_engine::engine::Device;
use asasr_engine::engine::cuda::{Event, Gpu};
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use std::time::Duration;

/// Time between two events on the device's stream. On the emulator, whose stream is the caller, that is wall time.
pub struct DeviceTime(&'static Gpu);

impl DeviceTime {
    /// The clock of a CUDA device that lives as long as the program.
    pub fn of(device: &'static Device) -> Self {
        Self(device.gpu().expect("a CUDA device"))
    }
}

impl Measurement for DeviceTime {
    type Intermediate = Event<'static>;
    type Value = Duration;

    fn start(&self) -> Event<'static> {
        self.0.mark().expect("an event")
    }
    fn end(&self, begun: Event<'static>) -> Duration {
        let ended = self.0.mark().expect("an event");
        Duration::from_secs_f64(ended.seconds_since(&begun).expect("two events in order"))
    }
    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }
    fn zero(&self) -> Duration {
        Duration::ZERO
    }
    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}
