// SPDX-License-Identifier: GPL-2.0-or-later
// The receiver's role of a host (core/native/link/receiver_role.hpp) for spin: a protocol thread, two threads
// that wait for an answer each, another host that sends one of them and a frame for the protocol thread, and a
// thread of this host whose step is the other's answer.
//
// At rest every frame has been handed on and both threads have their answer; a frame that a waiting thread
// leaves to the protocol thread is left once. Each define breaks one rule:
//   NO_LOOK       who gives the role back does not look for what has arrived after it
//   GIVE_FIRST    it gives the role back before arrivals wake the protocol thread, and does not look then
//   NO_CLAIM      a frame that is left does not claim the next turn
//   NO_CLAIM_BY_BELL  a protocol thread that was woken, and finds the role taken, does not claim the next turn
//   CHECK_EARLY   the awaited word is looked at before the thread says that it sleeps
//   NO_RECALL     who changes the word does not recall the thread that receives

mtype = { AWAKE, ON_BELL, ON_WORD };
#define OTHER 2  // the frame that no waiting thread may take; 0: the answer for thread 0
#define NONE 3
#define FRAMES 2

chan ring = [FRAMES] of { byte };
mtype sleeping = AWAKE;      // in shared memory: how the receiver sleeps
bool on_futex = false;       // a thread is queued on `sleeping`
bool bell = false;           // the protocol thread's descriptor is readable
bool held = false, claimed = true;
bool pending = false, thread_sleeps = false, event = false;  // ProtocolThread's own
bool answered[2];            // the words
byte awaited = NONE;
byte handed_on = 0, left = 0;

inline recall() {
    if
    :: atomic { sleeping == ON_WORD -> sleeping = AWAKE }; on_futex = false
    :: else -> skip
    fi
}
inline change(who) {
    answered[who] = true;
#ifndef NO_RECALL
    if
    :: awaited == who -> recall()
    :: else -> skip
    fi
#endif
}
inline hand_on(frame) {
    handed_on++;
    if
    :: frame < OTHER -> change(frame)
    :: else -> skip
    fi
}
inline wake_protocol_thread() {
    pending = true;
    if
    :: thread_sleeps -> event = true
    :: else -> skip
    fi
}
inline notify() {
    mtype how;
    if
    :: sleeping == AWAKE -> skip
    :: else ->
        atomic { how = sleeping; sleeping = AWAKE };
        if
        :: how == ON_BELL -> bell = true
        :: how == ON_WORD -> on_futex = false
        :: else -> skip
        fi
    fi
}

active proctype Peer() {
    byte sent = 0;
    bool done[2];
    do
    :: sent < FRAMES ->
        if
        :: !done[0] -> done[0] = true; ring ! 0
        :: !done[1] -> done[1] = true; ring ! OTHER
        fi;
        sent++;
        notify()
    :: else -> break
    od
}

active proctype Elsewhere() { change(1) }

active proctype Protocol() {
    bool holds = false, armed, ready = false;
    byte frame;
    do
    :: pending = false;
        if
        :: atomic { !holds && !held -> held = true; claimed = false; holds = true }; sleeping = AWAKE
        :: else -> skip
        fi;
        if
        :: ready -> bell = false
        :: else -> skip
        fi;
#ifndef NO_CLAIM_BY_BELL
        if
        :: !holds && ready ->
            claimed = true;
            if
            :: atomic { !held -> held = true; claimed = false; holds = true }; sleeping = AWAKE
            :: else -> skip
            fi
        :: else -> skip
        fi;
#endif
        ready = false;
        do
        :: holds && len(ring) != 0 -> ring ? frame; hand_on(frame)
        :: else -> break
        od;
        thread_sleeps = true;
        if
        :: pending -> skip
        :: else ->
            armed = true;
            if
            :: holds ->
                sleeping = ON_BELL;
                if
                :: len(ring) != 0 -> armed = false
                :: else -> holds = false; held = false
                fi
            :: else -> skip
            fi;
            if
            :: armed -> end_asleep: (bell || event); ready = bell; event = false
            :: else -> skip
            fi
        fi;
        thread_sleeps = false;
        if
        :: holds -> sleeping = AWAKE
        :: else -> skip
        fi
    od
}

proctype Waiting(byte me) {
    byte frame;
    bool mine, kept;
    do
    :: answered[me] -> break
    :: else ->
        mine = false;
        atomic {
            if
            :: !held && !claimed -> held = true; mine = true
            :: else -> skip
            fi
        };
        if
        :: !mine -> answered[me]  // sleeps on its word alone
        :: else ->
            awaited = me;
            kept = false;
            do
            :: answered[me] || kept -> break
            :: else ->
                sleeping = ON_WORD;
                if
                :: len(ring) != 0 -> skip
                :: else ->
#ifndef CHECK_EARLY
                    if
                    :: answered[me] -> break
                    :: else -> skip
                    fi;
#endif
                    atomic {
                        if
                        :: sleeping == ON_WORD -> on_futex = true
                        :: else -> skip
                        fi
                    };
                    !on_futex
                fi;
                sleeping = AWAKE;
                do
                :: len(ring) != 0 ->
                    ring ? <frame>;
                    if
                    :: frame == OTHER -> kept = true; left++; break
                    :: else -> ring ? frame; hand_on(frame)
                    fi
                :: else -> break
                od
            od;
            awaited = NONE;
#ifndef NO_CLAIM
            if
            :: kept -> claimed = true
            :: else -> skip
            fi;
#endif
#ifdef GIVE_FIRST
            held = false;
            sleeping = ON_BELL;
#else
            sleeping = ON_BELL;
            held = false;
#ifndef NO_LOOK
            if
            :: claimed || len(ring) != 0 -> wake_protocol_thread()
            :: else -> skip
            fi
#else
            if
            :: claimed -> wake_protocol_thread()
            :: else -> skip
            fi
#endif
#endif
        fi
    od
}

init {
    atomic { run Waiting(0); run Waiting(1) }
    timeout;
    assert(handed_on == FRAMES);
    assert(answered[0] && answered[1]);
    assert(left <= 1)
}
