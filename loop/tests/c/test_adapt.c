/* The controller of spinning and batching, played traces of times: no clock, no poller. */
#include "harness.h"
#include "st_adapt.h"

enum { US = 1000, MS = 1000 * US, WAKE_NS = 5 * US, SPIN_NS_MAX = 50 * US };

/* Turns with a wait each: what was played, and what came of it. */
typedef struct played {
    int changes;      /* of the mode */
    int waits, looks; /* a look is a wait before which the controller said so */
    int64_t looked_ns;
} played;

/* For span_ns, events arrive gap_ns after the wait for them began, and callbacks then work for worked_ns. A wait that no look
 * ends is longer by a wake-up. */
static played play(st_adapt *adapt, int64_t *now_ns, int64_t gap_ns, int64_t worked_ns, int64_t span_ns) {
    played result = {0};
    for (int64_t end_ns = *now_ns + span_ns; *now_ns < end_ns;) {
        int64_t spin_ns = st_adapt_next(adapt).spin_ns;
        int64_t waited_ns = gap_ns == 0 || gap_ns <= spin_ns ? gap_ns : gap_ns + WAKE_NS;
        *now_ns += waited_ns + worked_ns;
        st_adapt_turn_over(adapt, *now_ns, waited_ns, 1);
        result.changes += (st_adapt_next(adapt).spin_ns > 0) != (spin_ns > 0);
        result.waits++;
        result.looks += spin_ns > 0;
        result.looked_ns += gap_ns < spin_ns ? gap_ns : spin_ns;
    }
    return result;
}

static st_adapt started(double spare_cpus) {
    st_adapt adapt;
    st_adapt_init(&adapt, SPIN_NS_MAX, 0, WAKE_NS);
    adapt.spare_cpus = spare_cpus;
    return adapt;
}

static st_adapt looking(int64_t *now_ns) {
    st_adapt adapt = started(1);
    play(&adapt, now_ns, 4 * US, 20 * US, 100 * MS);
    CHECK(st_adapt_next(&adapt).spin_ns > 0);
    return adapt;
}

static void busy_traffic_is_worth_looking_for(void) {
    st_adapt adapt = started(1);
    int64_t now_ns = 1;
    CHECK_EQ(st_adapt_next(&adapt).spin_ns, 0);
    CHECK_EQ(play(&adapt, &now_ns, 4 * US, 0, 100 * MS).changes, 1);
    CHECK_EQ(st_adapt_next(&adapt).spin_ns, 2 * WAKE_NS);
}

static void what_callbacks_take_does_not_count(void) {
    static const int64_t worked_ns[] = {20 * US, 300 * US, 20 * MS};
    for (size_t i = 0; i < sizeof worked_ns / sizeof *worked_ns; i++) {
        st_adapt adapt = started(1);
        int64_t now_ns = 1;
        play(&adapt, &now_ns, 4 * US, worked_ns[i], 100 * MS + 10 * worked_ns[i]);
        CHECK_EQ(st_adapt_next(&adapt).spin_ns, 2 * WAKE_NS);
    }
}

static void the_wake_up_of_a_wait_slept_through_is_not_the_gap(void) {
    st_adapt adapt = started(1);
    int64_t now_ns = 1, gap_ns = 2 * WAKE_NS - WAKE_NS / 2;
    CHECK_EQ(play(&adapt, &now_ns, gap_ns, 20 * US, 1000 * MS).changes, 1);
    CHECK(st_adapt_next(&adapt).spin_ns >= gap_ns);
    adapt = started(1); /* nor is more of it taken off than a wake-up may really cost */
    CHECK_EQ(play(&adapt, &now_ns, 2 * WAKE_NS + 1, 20 * US, 1000 * MS).changes, 0);
    adapt = looking(&now_ns); /* and what outlasted a look was missed, whatever the wake-up */
    for (int i = 0; i < 2000; i++) st_adapt_turn_over(&adapt, now_ns += 50 * US, 2 * WAKE_NS + 1, 1);
    CHECK_EQ(st_adapt_next(&adapt).spin_ns, 0);
}

/* Three windows of short waits, not one and a long silence. */
static void one_burst_is_no_reason(void) {
    st_adapt adapt = started(1);
    int64_t now_ns = 1;
    play(&adapt, &now_ns, 4 * US, 0, 9 * MS);
    play(&adapt, &now_ns, 100 * MS, 0, 100 * MS);
    CHECK_EQ(st_adapt_next(&adapt).spin_ns, 0);
}

static void looking_is_bounded_by_its_limit(void) {
    st_adapt adapt = started(1);
    adapt.wake_ns = 40 * US;
    int64_t now_ns = 1;
    play(&adapt, &now_ns, 4 * US, 0, 100 * MS);
    CHECK_EQ(st_adapt_next(&adapt).spin_ns, SPIN_NS_MAX);
    st_adapt_init(&adapt, 0, 0, WAKE_NS);
    adapt.spare_cpus = 1;
    play(&adapt, &now_ns, 4 * US, 0, 100 * MS);
    CHECK_EQ(st_adapt_next(&adapt).spin_ns, 0);
}

static void rare_events_are_slept_for(void) {
    st_adapt adapt = started(1);
    int64_t now_ns = 1;
    CHECK_EQ(play(&adapt, &now_ns, 100 * US, 0, 1000 * MS).changes, 0);
    play(&adapt, &now_ns, 4 * US, 0, 100 * MS);
    CHECK(st_adapt_next(&adapt).spin_ns > 0);
    CHECK_EQ(play(&adapt, &now_ns, 1 * MS, 0, 200 * MS).changes, 1);
    CHECK_EQ(st_adapt_next(&adapt).spin_ns, 0);
}

/* Where two of five waits are too long looking does not begin, but it goes on; where two of three are, it ends. */
static void looking_has_to_end_most_waits(void) {
    st_adapt adapt = started(1);
    int64_t now_ns = 1;
    for (int i = 0; i < 2000; i++) {
        play(&adapt, &now_ns, 4 * US, 0, 20 * US);
        play(&adapt, &now_ns, 100 * US, 0, 200 * US);
    }
    CHECK_EQ(st_adapt_next(&adapt).spin_ns, 0);
    adapt = looking(&now_ns);
    for (int i = 0; i < 2000; i++) {
        CHECK_EQ(play(&adapt, &now_ns, 4 * US, 0, 12 * US).waits, 3);
        CHECK_EQ(play(&adapt, &now_ns, 100 * US, 0, 200 * US).waits, 2);
    }
    CHECK(st_adapt_next(&adapt).spin_ns > 0);
    for (int i = 0; i < 2000; i++) {
        play(&adapt, &now_ns, 4 * US, 0, 4 * US);
        play(&adapt, &now_ns, 100 * US, 0, 200 * US);
    }
    CHECK_EQ(st_adapt_next(&adapt).spin_ns, 0);
}

/* Turns whose wait was no longer than the system call. */
static void poll_for_a_second(st_adapt *adapt, int64_t *now_ns) {
    for (int i = 0; i < 20000; i++) st_adapt_turn_over(adapt, *now_ns += 50 * US, 500, 1);
}

static void a_loop_that_never_waits_gives_no_reason(void) {
    st_adapt adapt = started(1);
    int64_t now_ns = 1;
    CHECK_EQ(play(&adapt, &now_ns, 0, 50 * US, 1000 * MS).changes, 0);
    poll_for_a_second(&adapt, &now_ns);
    CHECK_EQ(st_adapt_next(&adapt).spin_ns, 0);
    adapt = looking(&now_ns);
    CHECK_EQ(play(&adapt, &now_ns, 0, 50 * US, 1000 * MS).changes, 0);
    poll_for_a_second(&adapt, &now_ns);
    CHECK(st_adapt_next(&adapt).spin_ns > 0);
}

/* However long the sleeps: none has more than one look before it, and a second of them no more than 5 ms of looking. */
static void silence_ends_the_looking(void) {
    static const int64_t sleeps_ns[] = {1 * MS, 5 * MS, 9 * MS, 11 * MS, 30 * MS, 100 * MS, 1000 * MS};
    for (size_t i = 0; i < sizeof sleeps_ns / sizeof *sleeps_ns; i++) {
        int64_t now_ns = 1, begin_ns;
        st_adapt adapt = looking(&now_ns);
        begin_ns = now_ns;
        played silence = play(&adapt, &now_ns, sleeps_ns[i], 10 * US, 1000 * MS);
        CHECK(silence.looks <= silence.waits && silence.looked_ns <= silence.looks * (int64_t)SPIN_NS_MAX);
        CHECK(silence.looked_ns <= 5 * MS);
        if (sleeps_ns[i] >= 30 * MS) CHECK(silence.looks <= 2);
        play(&adapt, &now_ns, sleeps_ns[i], 10 * US, 4 * sleeps_ns[i]);
        CHECK_EQ(play(&adapt, &now_ns, sleeps_ns[i], 10 * US, 1000 * MS).looks, 0);
        CHECK(now_ns > begin_ns);
    }
}

/* A timer that is due finds no event; it has been waited for all the same. */
static void timers_are_slept_for(void) {
    int64_t now_ns = 1;
    st_adapt adapt = looking(&now_ns);
    for (int i = 0; i < 100; i++) st_adapt_turn_over(&adapt, now_ns += MS, MS, 0);
    CHECK_EQ(st_adapt_next(&adapt).spin_ns, 0);
}

static void no_cpu_is_taken_from_others(void) {
    st_adapt adapt = started(0.8);
    int64_t now_ns = 1;
    CHECK_EQ(play(&adapt, &now_ns, 4 * US, 20 * US, 1000 * MS).changes, 0);
    adapt = looking(&now_ns);
    adapt.spare_cpus = 0.8; /* at once, not three windows later */
    CHECK_EQ(st_adapt_next(&adapt).spin_ns, 0);
}

static void a_square_wave_does_not_flap(void) {
    st_adapt adapt = started(1);
    int64_t now_ns = 1;
    int changes = 0;
    for (int i = 0; i < 100; i++) {
        changes += play(&adapt, &now_ns, 4 * US, 0, 12 * MS).changes;
        changes += play(&adapt, &now_ns, 1 * MS, 0, 12 * MS).changes;
    }
    CHECK(changes <= 10);
}

/* Turns that found `events` every 100 us. */
static void find(st_adapt *adapt, int64_t *now_ns, unsigned events) {
    for (int i = 0; i < 1000; i++) st_adapt_turn_over(adapt, *now_ns += 100 * US, 50 * US, events);
}

static void only_load_is_batched(void) {
    st_adapt adapt;
    int64_t now_ns = 1;
    st_adapt_init(&adapt, 0, 50 * US, WAKE_NS);
    find(&adapt, &now_ns, 4);
    CHECK_EQ(st_adapt_next(&adapt).min_events, 1);
    CHECK_EQ(st_adapt_next(&adapt).min_wait_ns, 0);
    find(&adapt, &now_ns, 64);
    CHECK(st_adapt_next(&adapt).min_events >= 30 && st_adapt_next(&adapt).min_events <= 32);
    CHECK_EQ(st_adapt_next(&adapt).min_wait_ns, 50 * US);
    find(&adapt, &now_ns, 4000);
    CHECK_EQ(st_adapt_next(&adapt).min_events, ST_ADAPT_BATCH_MAX);
    for (int i = 0; i < 1000; i++) st_adapt_turn_over(&adapt, now_ns += MS, MS, 0); /* timers are no events */
    CHECK_EQ(st_adapt_next(&adapt).min_events, ST_ADAPT_BATCH_MAX);
    st_adapt_init(&adapt, 0, 0, WAKE_NS);
    find(&adapt, &now_ns, 64);
    CHECK_EQ(st_adapt_next(&adapt).min_events, 1);
}

#define TEST(name) {#name, name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(busy_traffic_is_worth_looking_for),
        TEST(what_callbacks_take_does_not_count),
        TEST(the_wake_up_of_a_wait_slept_through_is_not_the_gap),
        TEST(one_burst_is_no_reason),
        TEST(looking_is_bounded_by_its_limit),
        TEST(rare_events_are_slept_for),
        TEST(looking_has_to_end_most_waits),
        TEST(a_loop_that_never_waits_gives_no_reason),
        TEST(silence_ends_the_looking),
        TEST(timers_are_slept_for),
        TEST(no_cpu_is_taken_from_others),
        TEST(a_square_wave_does_not_flap),
        TEST(only_load_is_batched),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
