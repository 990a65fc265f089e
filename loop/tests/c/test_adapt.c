/* The controller of spinning and batching, played traces of times: no clock, no poller. */
#include "harness.h"
#include "st_adapt.h"

enum { US = 1000, MS = 1000 * US, WAKE_NS = 5 * US, SPIN_NS_MAX = 50 * US };

/* Turns that found `events` every gap_ns for span_ns. Returns how often the mode changed. */
static int play(st_adapt *adapt, int64_t *now_ns, int64_t gap_ns, int64_t span_ns, unsigned events) {
    int changes = 0, before = st_adapt_next(adapt).spin_ns > 0;
    for (int64_t end_ns = *now_ns + span_ns; *now_ns < end_ns;) {
        *now_ns += gap_ns;
        st_adapt_found(adapt, *now_ns, events);
        int after = st_adapt_next(adapt).spin_ns > 0;
        changes += after != before;
        before = after;
    }
    return changes;
}

static st_adapt started(int spare_cpus) {
    st_adapt adapt;
    st_adapt_init(&adapt, SPIN_NS_MAX, 0, WAKE_NS);
    adapt.spare_cpus = spare_cpus;
    return adapt;
}

static void busy_traffic_is_worth_looking_for(void) {
    st_adapt adapt = started(1);
    int64_t now_ns = 1;
    CHECK_EQ(st_adapt_next(&adapt).spin_ns, 0);
    CHECK_EQ(play(&adapt, &now_ns, 4 * US, 100 * MS, 1), 1);
    CHECK_EQ(st_adapt_next(&adapt).spin_ns, 2 * WAKE_NS);
}

static void looking_is_bounded_by_its_limit(void) {
    st_adapt adapt = started(1);
    adapt.wake_ns = 40 * US;
    int64_t now_ns = 1;
    play(&adapt, &now_ns, 4 * US, 100 * MS, 1);
    CHECK_EQ(st_adapt_next(&adapt).spin_ns, SPIN_NS_MAX);
    st_adapt_init(&adapt, 0, 0, WAKE_NS);
    adapt.spare_cpus = 1;
    play(&adapt, &now_ns, 4 * US, 100 * MS, 1);
    CHECK_EQ(st_adapt_next(&adapt).spin_ns, 0);
}

static void rare_events_are_slept_for(void) {
    st_adapt adapt = started(1);
    int64_t now_ns = 1;
    CHECK_EQ(play(&adapt, &now_ns, 100 * US, 1000 * MS, 1), 0);
    play(&adapt, &now_ns, 4 * US, 100 * MS, 1);
    CHECK(st_adapt_next(&adapt).spin_ns > 0);
    CHECK_EQ(play(&adapt, &now_ns, 1 * MS, 200 * MS, 1), 1);
    CHECK_EQ(st_adapt_next(&adapt).spin_ns, 0);
}

static void no_cpu_is_taken_from_others(void) {
    st_adapt adapt = started(0);
    int64_t now_ns = 1;
    CHECK_EQ(play(&adapt, &now_ns, 4 * US, 1000 * MS, 1), 0);
    adapt = started(1);
    play(&adapt, &now_ns, 4 * US, 100 * MS, 1);
    adapt.spare_cpus = 0; /* at once, not three windows later */
    CHECK_EQ(st_adapt_next(&adapt).spin_ns, 0);
}

static void a_square_wave_does_not_flap(void) {
    st_adapt adapt = started(1);
    int64_t now_ns = 1;
    int changes = 0;
    for (int i = 0; i < 100; i++) {
        changes += play(&adapt, &now_ns, 4 * US, 12 * MS, 1);
        changes += play(&adapt, &now_ns, 1 * MS, 12 * MS, 1);
    }
    CHECK(changes <= 10);
}

static void only_load_is_batched(void) {
    st_adapt adapt;
    int64_t now_ns = 1;
    st_adapt_init(&adapt, 0, 50 * US, WAKE_NS);
    play(&adapt, &now_ns, 100 * US, 100 * MS, 4);
    CHECK_EQ(st_adapt_next(&adapt).min_events, 1);
    CHECK_EQ(st_adapt_next(&adapt).min_wait_ns, 0);
    play(&adapt, &now_ns, 100 * US, 100 * MS, 64);
    CHECK(st_adapt_next(&adapt).min_events >= 30 && st_adapt_next(&adapt).min_events <= 32);
    CHECK_EQ(st_adapt_next(&adapt).min_wait_ns, 50 * US);
    play(&adapt, &now_ns, 100 * US, 100 * MS, 4000);
    CHECK_EQ(st_adapt_next(&adapt).min_events, ST_ADAPT_BATCH_MAX);
    st_adapt_init(&adapt, 0, 0, WAKE_NS);
    play(&adapt, &now_ns, 100 * US, 100 * MS, 64);
    CHECK_EQ(st_adapt_next(&adapt).min_events, 1);
}

static void the_machine_can_be_measured(void) {
    int64_t wake_ns = st_measure_wake_ns();
    CHECK(wake_ns > 100 && wake_ns < 1000 * MS);
    CHECK(st_measure_spare_cpus() >= 0);
}

#define TEST(name) {#name, name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(busy_traffic_is_worth_looking_for), TEST(looking_is_bounded_by_its_limit),
        TEST(rare_events_are_slept_for),         TEST(no_cpu_is_taken_from_others),
        TEST(a_square_wave_does_not_flap),       TEST(only_load_is_batched),
        TEST(the_machine_can_be_measured),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
