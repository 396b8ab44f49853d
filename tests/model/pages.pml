/* SPDX-License-Identifier: GPL-2.0-or-later
 * The page protocol of core/native/coherence as a model: one page (its pages know nothing of each other), three
 * hosts, host 0 is its home. Every host reads and writes when it likes, so that upgrades cross; with -DRMW it
 * also has operations executed at the owner, or the page moved to it, as the home likes (whatever policy).
 *
 * Holds only delay an order; here an order may be taken at any time, which includes every delay.
 *
 *   spin -a [-DRMW] [-DBROKEN=n] pages.pml && cc -O2 -DSAFETY -o pan pan.c && ./pan
 *   BROKEN  1: a writer does not wait for acknowledgements     2: an owner keeps what it sends
 *           3: an upgrade that has lost is granted all the same 4: the home does not wait for Done
 *           5: an operation that was executed at the owner is executed here too
 *           6: the home ends a transaction with its answer though others have to acknowledge
 */
#define N 3
#define HOME 0
#ifndef BROKEN
#define BROKEN 0
#endif
#ifndef WRITES
#define WRITES 2 /* of each host */
#endif
#ifndef READS
#define READS 1
#endif

mtype = {GetS, GetM, Rmw, Done, FwdS, FwdM, FwdG, Inv, Grant, Have, Exec, Retry, DataS, DataM, InvAck, Result};
mtype = {I, S, M};

/* Ordered between each pair of hosts, and to oneself. kind, requester, of a memory transaction, acks, value */
chan link[9] = [5] of {mtype, byte, bit, byte, byte};
#define TO(from, to) link[(from) * N + (to)]

/* ---- the hosts' copies */
mtype access[N] = I;
byte copy[N];
bit asked_s[N], asked_m[N]; /* a GetS or GetM is under way */
bit asked_t[N];             /* a memory transaction is */
bit retried[N];             /* it came back: to be done here */
bit data[N];                /* the bytes or the grant are here ... */
bit data_m[N], data_t[N];   /* ... to write; for the transaction */
bit data_home[N];           /* ... from the home */
byte wanted[N];             /* acknowledgements that are expected (a set), and those that came */
byte acks[N];
byte writes[N], reads[N]; /* that have begun */

/* ---- the directory */
bit owned = 1;
byte owner = HOME;
byte sharers;
bit busy, busy_m;
byte busy_for;
chan queue = [6] of {mtype, byte}; /* requests behind the busy one: at most two of a host */

/* ---- what a guest may rely on */
byte truth; /* writes that have been done */
#define BIT(h) (1 << (h))

inline write_here(h) {
    copy[h]++;
    truth++
}

/* One writer or readers, and who can see the page sees the last write. */
inline check() {
    d_step {
        assert(access[0] != M || (access[1] == I && access[2] == I));
        assert(access[1] != M || (access[0] == I && access[2] == I));
        assert(access[2] != M || (access[0] == I && access[1] == I));
        assert(access[0] == I || copy[0] == truth);
        assert(access[1] == I || copy[1] == truth);
        assert(access[2] == I || copy[2] == truth)
    }
}

/* The home begins what it can, and answers what needs no transaction. */
inline serve(kind, r) {
    if
    :: kind == GetS && ((owned && owner == r) || (!owned && (sharers & BIT(r)))) -> TO(HOME, r)!Have(r, 0, 0, 0)
    :: kind == GetS && owned && owner != r -> busy = 1; busy_m = 0; busy_for = r; TO(HOME, owner)!FwdS(r, 0, 0, 0)
#ifndef RMW /* both together are ten times the states; tests/unit/model has both */
    :: kind == GetS && owned && owner != r -> start_write(r, 0) /* a page that migrates */
#endif
    :: kind == GetS && !owned && !(sharers & BIT(r)) ->
        busy = 1; busy_m = 0; busy_for = r;
        if /* any sharer may be the source */
        :: (sharers & 1) -> TO(HOME, 0)!FwdS(r, 0, 0, 0)
        :: (sharers & 2) -> TO(HOME, 1)!FwdS(r, 0, 0, 0)
        :: (sharers & 4) -> TO(HOME, 2)!FwdS(r, 0, 0, 0)
        fi
    :: kind == GetM && owned && owner == r -> TO(HOME, r)!Have(r, 0, 0, 0)
    :: kind == GetM && !(owned && owner == r) -> start_write(r, 0)
    :: kind == Rmw && owned && owner == r -> TO(HOME, r)!Retry(r, 1, 0, 0)
    :: kind == Rmw && owned && owner != r -> TO(HOME, owner)!Exec(r, 1, 0, 0)
    :: kind == Rmw && !(owned && owner == r) -> start_write(r, 1)
    fi
}

inline start_write(r, t) {
    busy = 1; busy_m = 1; busy_for = r;
    if
    :: owned -> TO(HOME, owner)!FwdM(r, t, 0, 0)
    :: !owned && ((sharers & BIT(r)) || BROKEN == 3) ->
        set = sharers & ~BIT(r);
        if
        :: r != HOME && (set & BIT(HOME)) -> /* the home gives its copy up, and then grants */
            set = set & ~BIT(HOME); TO(HOME, HOME)!FwdG(r, t, set, 0)
        :: else -> TO(HOME, r)!Grant(r, t, set, 0); end_with_answer(set)
        fi
    :: !owned && !(sharers & BIT(r)) && BROKEN != 3 ->
        if
        :: (sharers & 1) -> set = sharers & ~1; TO(HOME, 0)!FwdM(r, t, set, 0)
        :: (sharers & 2) -> set = sharers & ~2; TO(HOME, 1)!FwdM(r, t, set, 0)
        :: (sharers & 4) -> set = sharers & ~4; TO(HOME, 2)!FwdM(r, t, set, 0)
        fi
    fi;
    if
    :: !owned ->
        if :: (set & 1) -> TO(HOME, 0)!Inv(r, 0, 0, 0) :: else fi;
        if :: (set & 2) -> TO(HOME, 1)!Inv(r, 0, 0, 0) :: else fi;
        if :: (set & 4) -> TO(HOME, 2)!Inv(r, 0, 0, 0) :: else fi
    :: owned
    fi
}

/* A transaction whose answer the home itself sends ends there, when nobody else has to acknowledge: what it sends
 * later arrives later. */
inline end_with_answer(set_of) {
    if
    :: set_of == 0 || BROKEN == 6 -> TO(HOME, HOME)!Done(busy_for, 0, 0, 0)
    :: else
    fi
}

inline ended(r) {
    assert(BROKEN == 4 || (busy && busy_for == r));
    if
    :: busy_m -> owned = 1; owner = r; sharers = 0
    :: !busy_m && owned -> owned = 0; sharers = BIT(owner) | BIT(r)
    :: !busy_m && !owned -> sharers = sharers | BIT(r)
    fi;
    busy = 0;
    do
    :: !busy && nempty(queue) -> queue?k, who; serve(k, who)
    :: busy || empty(queue) -> break
    od
}

/* The requester has the page when the bytes and every acknowledgement are here. */
inline finish(h) {
    if
    :: data[h] && ((acks[h] & wanted[h]) == wanted[h] || BROKEN == 1) ->
        if
        :: data_m[h] -> access[h] = M
        :: else -> access[h] = S
        fi;
        if
        :: data_t[h] -> assert(asked_t[h]); asked_t[h] = 0; retried[h] = 1
        :: !data_t[h] && data_m[h] -> assert(asked_m[h] || asked_s[h]); asked_m[h] = 0; asked_s[h] = 0
        :: !data_t[h] && !data_m[h] -> assert(asked_s[h]); asked_s[h] = 0
        fi;
        if
        :: data_home[h] && (wanted[h] == 0 || BROKEN == 6)
        :: else -> TO(h, HOME)!Done(h, 0, 0, 0)
        fi;
        data[h] = 0; data_m[h] = 0; data_t[h] = 0; data_home[h] = 0;
        acks[h] = acks[h] & ~wanted[h]; /* those of a later transaction may have overtaken the home's answer */
        wanted[h] = 0
    :: else
    fi
}

proctype Host(byte h) {
    mtype k;
    byte from, r, a, v, set, who;
    bit t;
end:
    do
    /* the guest */
    :: atomic { access[h] == M && writes[h] < WRITES -> writes[h]++; write_here(h); check() }
    :: atomic { access[h] == I && !asked_s[h] && !asked_m[h] && reads[h] < READS ->
                reads[h]++; asked_s[h] = 1; TO(h, HOME)!GetS(h, 0, 0, 0) }
    :: atomic { access[h] != M && !asked_s[h] && !asked_m[h] && writes[h] < WRITES ->
                asked_m[h] = 1; TO(h, HOME)!GetM(h, 0, 0, 0) }
#ifdef RMW
    :: atomic { access[h] != M && !asked_t[h] && !retried[h] && writes[h] < WRITES ->
                writes[h]++; asked_t[h] = 1; TO(h, HOME)!Rmw(h, 1, 0, 0) }
    :: atomic { retried[h] && access[h] == M -> retried[h] = 0; write_here(h); check() }
    :: atomic { retried[h] && access[h] != M -> /* lost before it could be used */
                retried[h] = 0; asked_t[h] = 1; TO(h, HOME)!Rmw(h, 1, 0, 0) }
#endif
    /* messages, from whoever has one */
    :: atomic {
           if
           :: TO(0, h)?k, r, t, a, v -> from = 0
           :: TO(1, h)?k, r, t, a, v -> from = 1
           :: TO(2, h)?k, r, t, a, v -> from = 2
           fi;
           if
           :: k == GetS || k == GetM || k == Rmw ->
               if
               :: busy && BROKEN != 4 -> queue!k, r
               :: else -> serve(k, r)
               fi
           :: k == Done -> ended(r)
           :: k == FwdS ->
               assert(access[h] != I);
               access[h] = S;
               TO(h, r)!DataS(r, t, 0, copy[h]);
               if
               :: h == HOME -> end_with_answer(0)
               :: else
               fi
           :: k == FwdM ->
               assert(access[h] != I);
               if
               :: BROKEN != 2 -> access[h] = I
               :: else
               fi;
               TO(h, r)!DataM(r, t, a, copy[h]);
               if
               :: h == HOME -> end_with_answer(a)
               :: else
               fi
           :: k == FwdG -> assert(access[h] == S); access[h] = I; TO(h, r)!Grant(r, t, a, 0); end_with_answer(a)
           :: k == Inv -> assert(access[h] == S); access[h] = I; TO(h, r)!InvAck(r, 0, 0, 0)
           :: k == Have ->
               assert((asked_s[h] && access[h] != I) || (asked_m[h] && access[h] == M));
               asked_s[h] = 0; asked_m[h] = 0
           :: k == Grant ->
               assert(access[h] == S);
               data[h] = 1; data_m[h] = 1; data_t[h] = t; data_home[h] = (from == HOME); wanted[h] = a;
               finish(h)
           :: k == DataS ->
               assert(access[h] == I);
               copy[h] = v; data[h] = 1; data_t[h] = t; data_home[h] = (from == HOME); finish(h)
           :: k == DataM ->
               assert(access[h] == I);
               copy[h] = v; data[h] = 1; data_m[h] = 1; data_t[h] = t; data_home[h] = (from == HOME);
               wanted[h] = a; finish(h)
           :: k == InvAck -> acks[h] = acks[h] | BIT(from); finish(h)
           :: k == Exec -> assert(access[h] == M); write_here(h); TO(h, r)!Result(r, 1, 0, 0)
           :: k == Retry -> assert(asked_t[h]); asked_t[h] = 0; retried[h] = 1
           :: k == Result ->
               assert(asked_t[h]);
               asked_t[h] = 0;
               if
               :: BROKEN == 5 -> retried[h] = 1
               :: else
               fi
           fi;
           r = 0; t = 0; a = 0; v = 0; from = 0; set = 0; who = 0; k = 0; /* nothing of it is state */
           check()
       }
    od
}

/* When nothing can happen any more, nothing is under way, and every write was done once. */
proctype Rest() {
    timeout;
    assert(!busy && empty(queue));
    assert(!asked_s[0] && !asked_s[1] && !asked_s[2]);
    assert(!asked_m[0] && !asked_m[1] && !asked_m[2]);
    assert(!asked_t[0] && !asked_t[1] && !asked_t[2]);
    assert(truth == N * WRITES)
}

init {
    atomic {
        access[HOME] = M;
        run Host(0);
        run Host(1);
        run Host(2);
        run Rest()
    }
}
