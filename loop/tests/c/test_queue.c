/* The queue of what is ready, and moving one behind another: nothing lost, nothing overtaken. */
#include "harness.h"
#include "st_queue.h"

static void push(st_queue *queue, uintptr_t first, uintptr_t last) {
    for (uintptr_t item = first; item <= last; item++) CHECK_EQ(st_queue_push(queue, (void *)item), 0);
}

static void popped(st_queue *queue, uintptr_t first, uintptr_t last) {
    for (uintptr_t item = first; item <= last; item++) CHECK_EQ((uintptr_t)st_queue_pop(queue), item);
}

static void grows_around_its_end(void) {
    st_queue queue = {0};
    push(&queue, 1, 50);
    popped(&queue, 1, 40);
    push(&queue, 51, 300);
    for (size_t place = 0; place < queue.count; place++) CHECK_EQ((uintptr_t)st_queue_at(&queue, place), 41 + place);
    popped(&queue, 41, 300);
    CHECK(!st_queue_pop(&queue));
    st_queue_free(&queue);
}

static void moves_into_an_empty_one(void) {
    st_queue from = {0}, to = {0};
    push(&to, 1, 10);
    popped(&to, 1, 10);
    push(&from, 1, 100);
    CHECK_EQ(st_queue_move(&from, &to), 0);
    CHECK_EQ(from.count, 0);
    push(&from, 201, 210); /* what it was given instead is its own */
    popped(&to, 1, 100);
    popped(&from, 201, 210);
    st_queue_free(&from);
    st_queue_free(&to);
}

static void moves_behind_what_is_there(void) {
    st_queue from = {0}, to = {0};
    push(&to, 1, 60);
    popped(&to, 1, 30);
    push(&from, 61, 500);
    CHECK_EQ(st_queue_move(&from, &to), 0);
    CHECK_EQ(from.count, 0);
    popped(&to, 31, 500);
    CHECK_EQ(st_queue_move(&from, &to), 0);
    CHECK(!st_queue_pop(&to));
    st_queue_free(&from);
    st_queue_free(&to);
}

#define TEST(name) {#name, name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(grows_around_its_end),
        TEST(moves_into_an_empty_one),
        TEST(moves_behind_what_is_there),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
