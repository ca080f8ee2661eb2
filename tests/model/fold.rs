//! What a record decides, and the reference: the fold of the log that nothing disturbs.
use crate::world::*;

pub fn knows(ver: u8) -> u8 {
    if ver == 0 {
        1
    } else {
        3
    }
}
// the set permitted at offset o: the last raise below it
pub fn perm(c: &Cfg, ru: &KS, o: u8) -> u8 {
    if c.judge == 1 {
        return if ru.seq > 0 {
            3
        } else if ru.stage > 0 {
            2
        } else {
            1
        };
    }
    if ru.seq > 0 && ru.seq <= o {
        3
    } else if ru.stage > 0 && ru.stage <= o {
        2
    } else {
        1
    }
}
pub fn raised(c: &Cfg, ru: &KS, o: u8, n: u8) -> KS {
    let mut x = *ru;
    x.src = o + 1;
    if n == 2 {
        x.stage = o + 1;
    } else {
        x.seq = o + 1;
        if c.judge == 2 {
            x.stage = 0;
        }
    }
    x
}
// what code of version ver makes of a decision by set rs: its own if it does not know the set
pub fn said(rs: u8, ver: u8) -> u8 {
    if rs == 0 {
        1
    } else {
        rs.min(knows(ver)) & 1
    }
}
// pure fold: returns (new state, hist?, step?, touched?)
pub fn fold(c: &Cfg, s: KS, o: u8, e: u8, p: u8) -> (KS, bool, bool, bool) {
    let mut n = s;
    let k = key(e) as usize;
    if s.stage == FGT {
        return (s, false, false, false);
    }
    match kind(e) {
        0 => {
            n.src = o + 1;
            n.seq += 1;
            if s.stage == 0 || s.stage == REF {
                n.seq = 1;
                let asked = if key(e) == 1 { 2 } else { 0 };
                if c.pin == 3 && asked > p {
                    if c.unrecorded > 0 {
                        return (s, false, false, false);
                    }
                    n.stage = REF;
                    n.pver = 0;
                    n.dc = 0;
                    return (n, true, false, true);
                }
                if c.pin == 3 {
                    n.pver = if asked > 0 { asked } else { p };
                }
                n.stage = 1;
                n.dc = o + 1;
                return (n, true, true, true);
            }
            (n, true, false, true)
        }
        1 => {
            if s.stage == 0 || s.stage == REF {
                return (s, false, false, false);
            }
            n.src = o + 1;
            n.seq += 1;
            if s.stage < DONE && s.dc == cau(e) + 1 {
                if s.stage == NST[k] {
                    n.stage = DONE;
                    n.dc = 0;
                    return (n, true, false, true);
                }
                n.stage += 1;
                n.dc = o + 1;
                return (n, true, true, true);
            }
            (n, true, false, true)
        }
        4 => {
            if s.stage == 0 || s.stage == REF {
                return (s, false, false, false);
            }
            n.src = o + 1;
            n.seq += 1;
            if s.stage < DONE {
                n.dc = o + 1;
                return (n, true, true, true);
            }
            (n, true, false, true)
        }
        2 => {
            if s.stage == DONE {
                n.src = o + 1;
                n.stage = FGT;
                return (n, false, false, true);
            }
            (s, false, false, false)
        }
        _ => (s, false, false, false),
    }
}
pub struct Ref {
    pub h: [bool; 8],
    pub s: [bool; 8],
    pub v: [u8; 8],
    pub at: [[KS; 3]; 9],
    pub last: [[u8; 3]; 9],
} // at[n]=state after n events; last[n][k]=last effective offset+1 below n
pub fn alone(e: u8) -> bool {
    kind(e) == 3 || kind(e) == 5
} // its outputs depend on the record, or on immutable entries, alone
pub fn plain(c: &Cfg) -> Cfg {
    let mut x = c.clone();
    x.judge = 0;
    x.unrecorded = 0;
    x
}
pub fn reff(c: &Cfg, w: &W) -> Ref {
    let c = &plain(c);
    let mut r = Ref {
        h: [false; 8],
        s: [false; 8],
        v: [0; 8],
        at: [[KS::default(); 3]; 9],
        last: [[0; 3]; 9],
    };
    for o in 0..w.len {
        let i = o as usize;
        r.at[i + 1] = r.at[i];
        r.last[i + 1] = r.last[i];
        let e = w.log[i];
        if kind(e) == 3 {
            r.h[i] = true;
            continue;
        }
        if kind(e) == 5 {
            let ru = r.at[i][2];
            let p = perm(c, &ru, o);
            if cau(e) > p + 1 {
                r.h[i] = true;
            }
            if cau(e) == p + 1 {
                r.at[i + 1][2] = raised(c, &ru, o, cau(e));
                r.last[i + 1][2] = o + 1;
            }
            continue;
        }
        let k = key(e) as usize;
        let p = perm(c, &r.at[i][2], o);
        let (n, h, s, t) = fold(c, r.at[i][k], o, e, p);
        r.at[i + 1][k] = n;
        r.h[i] = h;
        r.s[i] = s;
        r.v[i] = said(n.pver, 1);
        if t {
            r.last[i + 1][k] = o + 1;
        }
    }
    r
}
