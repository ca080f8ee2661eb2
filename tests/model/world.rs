//! What is modelled: the log, the changelog, the owner, those that it took over from, and the budget of faults.
use std::collections::HashMap;

/// Keys of the table: executions `a` (0, two steps) and `b` (1, one step), the permitted rule sets, the watermark.
pub const RU: u8 = 2;
pub const WM: u8 = 3;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct KS {
    pub src: u8,
    pub stage: u8,
    pub seq: u8,
    pub pver: u8,
    pub dc: u8,
    pub ob: u16,
} // src=last folded offset+1; stage 0 absent,1..n running,8 done,9 forgotten; dc=offset+1 of current dispatch; ob bit=2*cause+ver
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Rec {
    pub key: u8,
    pub gen: u8,
    pub seen: bool,
    pub tomb: bool,
    pub void: bool,
    pub ks: KS,
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Eng {
    pub gen: u8,
    pub ver: u8,
    pub pos: u8,
    pub lim: u8,
    pub mem: [KS; 3],
    pub sent: u8,
    pub wm: u8,
    pub rwm: u8,
    pub nst: u8,
    pub stq: [Rec; 4],
    pub rep: bool,
    pub hk: bool,
    pub st_end: u8,
    pub bh: u16,
    pub bs: u16,
    pub out_end: u8,
    pub ph: u16,
    pub ps: u16,
    pub cm: u8,
    pub fl: u8,
    pub nt: u8,
    pub ghost: bool,
    pub dead: bool,
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct W {
    pub log: [u8; 8],
    pub len: u8,
    pub com: u8,
    pub oh: u16,
    pub os: u16,
    pub dur: u16,
    pub ncl: u8,
    pub cl: [Rec; 16],
    pub own: Eng,
    pub nz: u8,
    pub z: [Eng; 2],
    pub crash: u8,
    pub pause: u8,
    pub comp: u8,
    pub dup: u8,
    pub poi: u8,
    pub tmo: u8,
    pub fgt: u8,
    pub up: u8,
    pub mg: u8,
    pub raises: u8,
}

macro_rules! switches {
    ($($(#[$doc:meta])* $name:ident = $default:expr;)*) => {
        /// What holds in a run, as `name=value` on the command line.
        #[derive(Clone, Debug)]
        pub struct Cfg { $($(#[$doc])* pub $name: u8,)* pub cap: u64 }
        impl Cfg {
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)* "cap", "walk", "seed", "secs"];
            pub fn of(given: &HashMap<String, u64>) -> Cfg {
                let or = |name: &str, default: u64| *given.get(name).unwrap_or(&default);
                Cfg { $($name: or(stringify!($name), $default) as u8,)* cap: or("cap", 150_000_000) }
            }
        }
    };
}

switches! {
    /// 0: the outbox is overwritten by each fold; 1: it accumulates.
    outbox = 1;
    /// 0: the last record of a key wins; 1: the highest (src, epoch); 2: (epoch, src); 3: void by position.
    order = 1;
    /// 0: none; 1: the owner writes its own value again; 2: the winner; 3: but not over a record ahead; 4: but not at recovery.
    repair = 1;
    /// The gap check before outputs: exit on a higher epoch.
    gap = 1;
    /// A new owner appends a claim first, and reads up to it.
    claim = 0;
    /// 0: any later record removes; 1: only one that the owner has digested; 2: any, with the epoch in the changelog key.
    compmode = 0;
    /// State and outputs in parallel.
    par = 0;
    /// The next batch is folded while outputs fly.
    pipe = 0;
    /// Step messages are derived from the state instead of the outbox.
    level = 0;
    /// What decides: 0 the owner's code; 1 the code that began the execution, kept in its state; 2 the log; 3 the rule set
    /// that the log permits at the start's offset.
    pin = 0;
    /// Dead letters are sent again below the watermark, too.
    pfix = 1;
    /// The watermark never falls.
    wmono = 1;
    /// Expiry: 1 in one stage, 2 in two.
    forget = 2;
    /// A commit of an earlier owner is accepted.
    zcommit = 0;
    /// The broker fences earlier owners.
    fence = 0;
    batch = 2;
    maxlog = 5;
    zmax = 2;
    /// Budgets: crashes, pauses, compactions, duplicates, poison records, time-outs, expiries, changes of code, raises.
    crash = 1;
    pause = 1;
    comp = 1;
    dup = 1;
    poi = 0;
    tmo = 0;
    fgt = 0;
    up = 0;
    raises = 0;
    /// An output before its decision is durable counts as a violation.
    strict = 1;
    /// A crash may leave writes in flight (2: outputs too).
    ghosts = 1;
    /// A tombstone only after the outbox is sent.
    fsafe = 1;
    /// Outbox entries are dropped only up to `sent_through`.
    pdrop = 1;
    /// A start is judged by: 0 the last raise below its offset; 1 the highest raise known; 2 the newest raise, the only
    /// one that is kept; 3 raises in records of their own under one key.
    judge = 0;
    /// An unknown permitted set: 0 stops the partition; 1 is ignored; 2 stops it in the log alone; 3 at recovery alone.
    unknown = 0;
    /// A refused start leaves no state.
    unrecorded = 0;
    /// Late records under `rules` are not repaired.
    unrepaired = 0;
    /// `rules` is written after the states of its batch.
    rules_last = 0;
    /// The first owner's code: 0 has rule set 1, 1 has 1 to 3.
    code = 0;
}

/// Events of the log: what, of which key, and caused by which offset.
pub fn ev(k: u8, key: u8, c: u8) -> u8 {
    (k << 5) | (key << 4) | c
} // kinds: 0 T,1 C,2 F,3 P,4 X,5 raise to cau
pub fn kind(e: u8) -> u8 {
    e >> 5
}
pub fn key(e: u8) -> u8 {
    (e >> 4) & 1
}
pub fn cau(e: u8) -> u8 {
    e & 15
}
pub const NST: [u8; 2] = [2, 1];
pub const REF: u8 = 7;
pub const DONE: u8 = 8;
pub const FGT: u8 = 9;
