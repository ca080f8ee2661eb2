//! The fold of a batch by one owner.
use crate::fold::*;
use crate::world::*;

pub fn mask_lt(n: u8) -> u16 {
    if n >= 8 {
        0xffff
    } else {
        ((1u32 << (2 * n)) - 1) as u16
    }
}
pub fn start(c: &Cfg, w: &W, e: &Eng, n: u8) -> Eng {
    let mut n = n;
    let mut x = *e;
    let mut touched = [false; 3];
    let mut tomb = [false; 3];
    x.bh = 0;
    x.bs = 0;
    for o in e.pos..e.pos + n {
        let evn = w.log[o as usize];
        if kind(evn) == 3 {
            if o >= e.rwm || c.pfix > 0 {
                x.bh |= 1 << (2 * o);
            }
            continue;
        }
        if kind(evn) == 5 {
            let ru = x.mem[2];
            let to = cau(evn);
            let p = perm(c, &ru, o);
            if to > p + 1 {
                x.bh |= 1 << (2 * o);
                continue;
            }
            if to <= p || o < ru.src || (ru.src == 0 && o < e.rwm) {
                continue;
            }
            if to > knows(e.ver) {
                if c.unknown == 0 || c.unknown == 2 {
                    if o == e.pos {
                        x = *e;
                        x.dead = true;
                        return x;
                    }
                    n = o - e.pos;
                    break;
                }
                if c.unknown == 1 {
                    continue;
                }
            }
            x.mem[2] = raised(c, &ru, o, to);
            touched[2] = true;
            continue;
        }
        let k = key(evn) as usize;
        let s = x.mem[k];
        if o < s.src {
            let mut m = s.ob & (3 << (2 * o));
            if c.pin == 3 && m != 0 && s.pver > 0 {
                m = 1 << (2 * o + said(s.pver, e.ver));
            }
            x.bh |= m;
            if c.level == 0 {
                x.bs |= m;
            } else if s.stage > 0 && s.stage < DONE && s.dc > 0 {
                let v = match c.pin {
                    0 => e.ver,
                    1 => s.pver,
                    3 => said(s.pver, e.ver),
                    _ => 0,
                };
                x.bs |= 1 << (2 * (s.dc - 1) + v);
            }
            continue;
        }
        if s.stage == 0 && o < e.rwm {
            continue;
        }
        if s.stage == 0 && s.src > o {
            continue;
        }
        let p = perm(c, &x.mem[2], o);
        let (mut nn, h, st, t) = fold(c, s, o, evn, p);
        if !t {
            continue;
        }
        touched[k] = true;
        tomb[k] = false;
        if c.pin < 3 && kind(evn) == 0 && s.stage == 0 {
            nn.pver = if c.pin == 2 { 0 } else { e.ver };
        }
        let v = match c.pin {
            0 => e.ver,
            1 => nn.pver,
            3 => said(nn.pver, e.ver),
            _ => 0,
        };
        if kind(evn) == 2 && c.forget == 1 {
            if s.ob & !mask_lt(e.sent) != 0 {
                nn = s;
                nn.src = o + 1;
            } else {
                let mut q = KS::default();
                q.src = o + 1;
                nn = q;
                tomb[k] = true;
            }
            x.mem[k] = nn;
            continue;
        }
        if c.outbox == 0 {
            nn.ob = 0;
        } else {
            nn.ob &= !mask_lt(if c.pdrop == 0 { e.pos } else { e.sent });
        }
        if h {
            nn.ob |= 1 << (2 * o + v);
            x.bh |= 1 << (2 * o + v);
        }
        if st {
            x.bs |= 1 << (2 * o + v);
        }
        x.mem[k] = nn;
    }
    // ob carries one bit per decision; a decision without a step part must not resend a step: masked by the reference at send time
    let rf = reff(c, w);
    for o in 0..8 {
        if !rf.s[o] {
            x.bs &= !(3 << (2 * o));
        }
    }
    let mut q = 0;
    let order = if c.rules_last == 0 {
        [2, 0, 1]
    } else {
        [0, 1, 2]
    };
    for k in order {
        if touched[k] {
            let mut r = Rec::default();
            r.key = k as u8;
            r.gen = e.gen;
            r.tomb = tomb[k];
            r.ks = x.mem[k];
            if k == 2 && c.judge == 3 {
                if r.ks.seq == r.ks.src {
                    r.ks.stage = 0;
                } else {
                    r.ks.seq = 0;
                }
            }
            x.stq[q] = r;
            q += 1;
        }
    }
    let end = e.pos + n;
    x.wm = if c.wmono > 0 { x.wm.max(end) } else { end };
    let mut r = Rec::default();
    r.key = WM;
    r.gen = e.gen;
    r.ks.src = x.wm;
    x.stq[q] = r;
    q += 1;
    x.nst = q as u8;
    x.st_end = end;
    x.pos = end;
    if c.par > 0 {
        x.ph = x.bh;
        x.ps = x.bs;
        x.bh = 0;
        x.bs = 0;
        x.out_end = end;
    }
    x
}
