//! Calendar dates from seconds since 1970, for HTTP, FAT and the log.

use core::fmt;
use core::time::Duration;

/// A moment in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    /// Full year.
    pub year: u64,
    /// Month, 1 to 12.
    pub month: u8,
    /// Day of the month, 1 to 31.
    pub day: u8,
    /// Hour, 0 to 23.
    pub hour: u8,
    /// Minute, 0 to 59.
    pub minute: u8,
    /// Second, 0 to 59.
    pub second: u8,
    /// Day of the week, 0 is Sunday.
    pub weekday: u8,
}

impl From<Duration> for Date {
    /// From time since 1970-01-01 00:00 UTC.
    fn from(unix: Duration) -> Self {
        let days = unix.as_secs() / 86_400;
        let second = unix.as_secs() % 86_400;
        // Years that begin in March put the leap day last; an era is 400 years of 146,097 days.
        let shifted = days + 719_468;
        let (era, of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * of_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        Self {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month: month as u8,
            day: (of_year - (153 * march_month + 2) / 5 + 1) as u8,
            hour: (second / 3_600) as u8,
            minute: (second / 60 % 60) as u8,
            second: (second % 60) as u8,
            weekday: ((days + 4) % 7) as u8,
        }
    }
}

/// The form of HTTP's `Date` header (RFC 9110, section 5.6.7).
impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DAYS: &str = "SunMonTueWedThuFriSat";
        const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
        let name = |names: &'static str, at: u8| {
            let start = usize::from(at) * 3;
            names.get(start..start + 3).unwrap_or("???")
        };
        let Self { year, day, hour, minute, second, .. } = self;
        let (weekday, month) = (name(DAYS, self.weekday), name(MONTHS, self.month - 1));
        write!(f, "{weekday}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT")
    }
}
