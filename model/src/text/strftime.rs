//! Dates, for templates that want to know the day.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const DAY_SECONDS: u64 = 86_400;

/// A moment in UTC.
struct Date {
    year: u64,
    /// From 1.
    month: u64,
    /// From 1.
    day: u64,
    /// From 1.
    day_of_year: u64,
    /// 0 is Sunday.
    weekday: u64,
    /// Since midnight.
    seconds: u64,
}

/// Formats a moment in UTC as C's `strftime` would; `None` for a format it does not know.
pub fn strftime(format: &str, time: SystemTime) -> Option<String> {
    let date = Date::new(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    let mut output = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            output.push(character);
            continue;
        }
        match characters.next()? {
            '-' => output.push_str(date.field(characters.next()?)?.trim_start_matches('0')),
            field => output.push_str(&date.field(field)?),
        }
    }
    Some(output)
}

// === impl Date ===

impl Date {
    fn new(unix_seconds: u64) -> Self {
        let mut days = unix_seconds / DAY_SECONDS;
        let weekday = (days + 4) % 7;
        let mut year = 1970;
        let is_leap =
            |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
        while days >= 365 + u64::from(is_leap(year)) {
            days -= 365 + u64::from(is_leap(year));
            year += 1;
        }
        let day_of_year = days + 1;
        let february = 28 + u64::from(is_leap(year));
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        let seconds = unix_seconds % DAY_SECONDS;
        Self { year, month, day: days + 1, day_of_year, weekday, seconds }
    }

    fn field(&self, name: char) -> Option<String> {
        let (hour, minute, second) = (self.seconds / 3600, self.seconds / 60 % 60, self.seconds % 60);
        let (month, day) = (MONTHS[self.month as usize - 1], DAYS[self.weekday as usize]);
        Some(match name {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'A' => day.to_owned(),
            'a' => day[..3].to_owned(),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'Z' => "UTC".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn format(format: &str, unix_seconds: u64) -> Option<String> {
        strftime(format, UNIX_EPOCH + Duration::from_secs(unix_seconds))
    }

    #[test]
    fn knows_the_calendar() {
        assert_eq!(format("%d %b %Y", 0).unwrap(), "01 Jan 1970");
        assert_eq!(format("%A, %F %T", 951_826_154).unwrap(), "Tuesday, 2000-02-29 12:09:14");
        assert_eq!(
            format("%-d %B %y, %I %p, day %j", 1_735_689_599).unwrap(),
            "31 December 24, 11 PM, day 366"
        );
        assert_eq!(format("100%% %e %Z", 4_107_542_400).unwrap(), "100%  1 UTC");
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert_eq!(format("%Q", 0), None);
        assert_eq!(format("%", 0), None);
    }
}
