//! What templates expect of Python: `json.dumps` and `strftime`.

use serde_json::Value;

/// The arguments of `tojson` that change the text.
pub(crate) struct Dumps {
    /// Spaces for each level; `None` writes one line.
    pub indent: Option<usize>,
    pub sort_keys: bool,
    pub ensure_ascii: bool,
    pub item_separator: String,
    pub key_separator: String,
}

impl Dumps {
    pub fn text(&self, value: &Value) -> String {
        let mut out = String::new();
        self.write(value, 0, &mut out);
        out
    }

    fn write(&self, value: &Value, depth: usize, out: &mut String) {
        match value {
            Value::Null => out.push_str("null"),
            Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
            Value::Number(number) => match number.as_f64() {
                Some(float) if number.is_f64() => out.push_str(&float_repr(float)),
                _ => out.push_str(&number.to_string()),
            },
            Value::String(text) => self.write_text(text, out),
            Value::Array(items) => {
                self.write_list(('[', ']'), items.iter(), depth, out, |item, out| {
                    self.write(item, depth + 1, out);
                });
            }
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                if self.sort_keys {
                    fields.sort_by_key(|(key, _)| *key);
                }
                self.write_list(('{', '}'), fields.into_iter(), depth, out, |(key, field), out| {
                    self.write_text(key, out);
                    out.push_str(&self.key_separator);
                    self.write(field, depth + 1, out);
                });
            }
        }
    }

    fn write_list<T>(
        &self,
        (open, close): (char, char),
        items: impl ExactSizeIterator<Item = T>,
        depth: usize,
        out: &mut String,
        write: impl Fn(T, &mut String),
    ) {
        out.push(open);
        let is_empty = items.len() == 0;
        for (index, item) in items.enumerate() {
            if index > 0 {
                out.push_str(&self.item_separator);
            }
            self.new_line(depth + 1, out);
            write(item, out);
        }
        if !is_empty {
            self.new_line(depth, out);
        }
        out.push(close);
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn write_text(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' '
                    || (self.ensure_ascii && !c.is_ascii())
                    || (self.ensure_ascii && c == '\u{7f}') =>
                {
                    let mut units = [0u16; 2];
                    for unit in c.encode_utf16(&mut units) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// Python's `repr` of a float: shortest digits, exponent form from 1e16 up and below 1e-4.
fn float_repr(float: f64) -> String {
    let size = float.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{float:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |rest| ("-", rest));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{float:?}")
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
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

/// `strftime` in the C locale, for `seconds` since 1970 in the zone that shall be shown. A code that Python does
/// not have stays as it is.
pub(crate) fn strftime(seconds: i64, format: &str) -> String {
    let (days, second_of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let weekday = (days + 4).rem_euclid(7);
    let year_day = days - days_to(year, 1, 1) + 1;
    let hour_12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let (day_name, month_name) = (DAYS[weekday as usize], MONTHS[month as usize - 1]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        let bare = code == Some('-');
        if bare {
            code = chars.next();
        }
        let number = |value: i64, width: usize| {
            if bare { value.to_string() } else { format!("{value:0width$}") }
        };
        let field = match code {
            Some('Y') => year.to_string(),
            Some('y') => number(year.rem_euclid(100), 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => {
                if bare {
                    day.to_string()
                } else {
                    format!("{day:2}")
                }
            }
            Some('H') => number(hour, 2),
            Some('I') => number(hour_12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('j') => number(year_day, 3),
            Some('f') => "000000".into(),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('A') => day_name.into(),
            Some('a') => day_name[..3].into(),
            Some('B') => month_name.into(),
            Some('b' | 'h') => month_name[..3].into(),
            Some('w') => weekday.to_string(),
            Some('u') => {
                if weekday == 0 {
                    "7".into()
                } else {
                    weekday.to_string()
                }
            }
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('D' | 'x') => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            Some('T' | 'X') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('R') => format!("{hour:02}:{minute:02}"),
            Some('c') => {
                format!(
                    "{} {} {day:2} {hour:02}:{minute:02}:{second:02} {year}",
                    &day_name[..3],
                    &month_name[..3]
                )
            }
            Some('Z' | 'z') => String::new(),
            Some('n') => "\n".into(),
            Some('t') => "\t".into(),
            Some('%') => "%".into(),
            Some(other) => format!("%{}{other}", if bare { "-" } else { "" }),
            None => "%".into(),
        };
        out.push_str(&field);
    }
    out
}

/// Days since 1970 of a date of the proleptic Gregorian calendar. Years begin in March here, so that the leap day
/// is the last of its year.
fn days_to(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil(days: i64) -> (i64, i64, i64) {
    // 146,097 days are 400 years; the estimate is never early, and at most two years late.
    let mut year = 1971 + (days * 400).div_euclid(146_097);
    while days_to(year, 1, 1) > days {
        year -= 1;
    }
    let month = (1..=12).rev().find(|&month| days_to(year, month, 1) <= days).unwrap_or(1);
    (year, month, days - days_to(year, month, 1) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumps_as_python_does() {
        let value = serde_json::json!({"b": [1, 2.0, 1e16, 1.5e-7, -0.0], "a": {"é\u{7f}\n": null}, "e": [], "t": true});
        let mut dumps = Dumps {
            indent: None,
            sort_keys: false,
            ensure_ascii: false,
            item_separator: ", ".into(),
            key_separator: ": ".into(),
        };
        let one_line =
            "{\"b\": [1, 2.0, 1e+16, 1.5e-07, -0.0], \"a\": {\"é\u{7f}\\n\": null}, \"e\": [], \"t\": true}";
        assert_eq!(dumps.text(&value), one_line);
        (dumps.indent, dumps.sort_keys, dumps.item_separator) = (Some(2), true, ",".into());
        let short = serde_json::json!({"b": [1], "a": {}});
        assert_eq!(dumps.text(&short), "{\n  \"a\": {},\n  \"b\": [\n    1\n  ]\n}");
        dumps.ensure_ascii = true;
        assert_eq!(dumps.text(&Value::from("é🙂")), "\"\\u00e9\\ud83d\\ude42\"");
    }

    #[test]
    fn dates_as_python_prints_them() {
        let rows = [
            (0, "%d %b %Y %H:%M:%S %A %j", "01 Jan 1970 00:00:00 Thursday 001"),
            (1_721_952_000, "%d %b %Y", "26 Jul 2024"),
            (951_782_400, "%Y-%m-%d %a", "2000-02-29 Tue"),
            (1_735_689_599, "%B %-d, %Y %I:%M %p %j", "December 31, 2024 11:59 PM 366"),
            (-1, "%F %T", "1969-12-31 23:59:59"),
            (4_107_542_400, "%F", "2100-03-01"),
            (0, "100%% %Q", "100% %Q"),
        ];
        for (seconds, format, expected) in rows {
            assert_eq!(strftime(seconds, format), expected);
        }
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        let mut before = civil(-200_000);
        for days in -199_999..100_000 {
            let (year, month, day) = civil(days);
            assert_eq!(days_to(year, month, day), days);
            let next =
                if day == 1 { (month == before.1 % 12 + 1) && before.2 >= 28 } else { day == before.2 + 1 };
            assert!(next, "{before:?} -> {year}-{month}-{day}");
            before = (year, month, day);
        }
    }
}
