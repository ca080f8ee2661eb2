//! Traces in words.
use crate::steps::L;
use crate::world::*;

pub fn en(e: u8) -> String {
    let k = ['a', 'b'][key(e) as usize];
    match kind(e) {
        0 => format!("Start({})", k),
        1 => format!("Completion({}, step sent by offset {})", k, cau(e)),
        2 => format!("Forget({})", k),
        3 => "Poison".into(),
        5 => format!("Raise to rule set {}", cau(e)),
        _ => format!("Timeout({})", k),
    }
}
pub fn lab(l: L, pin: u8) -> String {
    let by = |v: u8| {
        if pin < 3 {
            format!("code v{}", v)
        } else if v == 0 {
            "by rule set 2".to_string()
        } else {
            "refused, or by rule set 1 or 3".to_string()
        }
    };
    let who = |x: u8| {
        if x == 0 {
            "owner".to_string()
        } else {
            format!("zombie{}", x)
        }
    };
    let kn = |k: u8| ["state(a)", "state(b)", "rules", "watermark"][k as usize];
    match l[0] {
        1 => format!(
            "{} changelog <- {}{} src={}",
            who(l[1]),
            if l[2] & 8 > 0 { "TOMBSTONE " } else { "" },
            kn(l[2] & 7),
            l[3] as i8 - 1
        ),
        2 => format!(
            "{} sends history/dead letter of offset {} ({})",
            who(l[1]),
            l[2],
            by(l[3])
        ),
        3 => format!(
            "{} sends step message of offset {} ({})",
            who(l[1]),
            l[2],
            by(l[3])
        ),
        4 => format!("{} commits {}", who(l[1]), l[2]),
        5 => format!("{} acks {} but the commit is lost", who(l[1]), l[2]),
        6 => format!(
            "{} folds batch offsets {}..{}",
            who(l[1]),
            l[2],
            l[2] + l[3] - 1
        ),
        7 => "owner notices a foreign record, repairs".into(),
        8 => format!("owner removes forgotten key {}", l[2]),
        9 => format!("{} dies", who(l[1])),
        10 => format!("log append {}", en(l[1])),
        11 => format!("log append DUPLICATE {}", en(l[1])),
        12 => format!(
            "CRASH, new owner{}",
            if l[1] > 0 { " with new code" } else { "" }
        ),
        13 => format!(
            "CRASH with writes in flight (ghost), new owner{}",
            if l[1] > 0 { " with new code" } else { "" }
        ),
        14 => format!(
            "PAUSE: owner becomes zombie, new owner{}",
            if l[1] > 0 { " with new code" } else { "" }
        ),
        15 => format!(
            "COMPACTION of {} up to the record (gen {}, src {})",
            kn(l[1]),
            l[2],
            l[3] as i8 - 1
        ),
        16 => format!("COMPACTION drops the tombstone of {}", kn(l[1])),
        _ => "?".into(),
    }
}
