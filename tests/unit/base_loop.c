/* Inbox, timers and tasks of the loop; waiting is for events, with a watchdog against hanging. */
#include "gateway/base/buf.h"
#include "gateway/base/clock.h"
#include "gateway/base/loop.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

/* What ran, one letter each. */
struct trace {
    struct loop *loop;
    char text[64];
    size_t len;
};

struct mark {
    struct trace *trace;
    char letter;
};

static void add(struct trace *trace, char letter)
{
    assert_true(trace->len < sizeof(trace->text) - 1);
    trace->text[trace->len++] = letter;
}

static void on_mark(void *ctx)
{
    struct mark *mark = ctx;
    add(mark->trace, mark->letter);
}

static void on_stop(void *ctx)
{
    loop_stop(ctx);
}

/* ---- Inbox ---- */

#define POSTS 20000

struct poster {
    struct loop *loop;
    atomic_int *finished;
    int seen;
};

struct letter {
    struct poster *poster;
    int number;
};

static void on_letter(void *ctx)
{
    struct letter *letter = ctx;
    struct poster *poster = letter->poster;
    assert_int_equal(letter->number, poster->seen);
    poster->seen++;
    if (poster->seen == POSTS && atomic_fetch_add(poster->finished, 1) == 1) {
        loop_stop(poster->loop);
    }
    mem_free(letter);
}

static void *post_many(void *ctx)
{
    struct poster *poster = ctx;
    for (int i = 0; i < POSTS; i++) {
        struct letter *letter = mem_alloc(sizeof(*letter));
        *letter = (struct letter){.poster = poster, .number = i};
        loop_post(poster->loop, on_letter, letter);
    }
    return NULL;
}

/* Each thread's posts arrive complete and in order, whatever the other does. */
static void test_posts_from_threads(void **state)
{
    (void)state;
    atomic_int finished = 0;
    struct loop *loop = loop_new("test");
    struct poster posters[2] = {{.loop = loop, .finished = &finished},
                                {.loop = loop, .finished = &finished}};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, post_many, &posters[i]), 0);
    }
    loop_run(loop);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(posters[i].seen, POSTS);
    }
    loop_free(&loop);
    assert_null(loop);
}

/* The other way round: the loop runs in a thread and is stopped from here. */
static void *run_loop(void *ctx)
{
    loop_run(ctx);
    return NULL;
}

static void test_loop_in_thread(void **state)
{
    (void)state;
    atomic_int finished = 1;
    struct loop *loop = loop_new("a name longer than the kernel keeps");
    struct poster poster = {.loop = loop, .finished = &finished};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, run_loop, loop), 0);
    (void)post_many(&poster);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(poster.seen, POSTS);
    loop_free(&loop);
}

static void on_post_again(void *ctx)
{
    struct mark *mark = ctx;
    add(mark->trace, 'p');
    loop_post(mark->trace->loop, on_mark, mark);
}

/* Posts nobody ran are run when the loop is freed, also those they post. */
static void test_free_runs_posts(void **state)
{
    (void)state;
    struct loop *loop = loop_new("test");
    struct trace trace = {.loop = loop};
    struct mark mark = {.trace = &trace, .letter = 'm'};
    loop_post(loop, on_post_again, &mark);
    loop_free(&loop);
    assert_string_equal(trace.text, "pm");
    loop_free(&loop);
}

static void test_stop_before_run(void **state)
{
    (void)state;
    struct loop *loop = loop_new("test");
    loop_stop(loop);
    loop_run(loop);
    loop_free(&loop);
}

/* ---- Timers ---- */

static void test_timer_order(void **state)
{
    (void)state;
    struct loop *loop = loop_new("test");
    struct trace trace = {.loop = loop};
    static const int delays[] = {30, 10, 20, 10, 0, 50, 10};
    struct loop_timer timers[7] = {{.loop = NULL}};
    struct mark marks[7];
    for (int i = 0; i < 7; i++) {
        marks[i] = (struct mark){.trace = &trace, .letter = (char)('a' + i)};
        loop_timer_start(loop, &timers[i], delays[i], on_mark, &marks[i]);
        assert_true(loop_timer_active(&timers[i]));
    }
    /* One stopped, one restarted: it goes behind its equals. */
    loop_timer_stop(&timers[2]);
    loop_timer_stop(&timers[2]);
    loop_timer_start(loop, &timers[1], 10, on_mark, &marks[1]);
    struct loop_timer stop = {.loop = NULL};
    loop_timer_start(loop, &stop, 60, on_stop, loop);
    int64_t before_ms = clock_mono_ms();
    loop_run(loop);
    assert_true(clock_mono_ms() - before_ms >= 59);
    assert_string_equal(trace.text, "edgbaf");
    for (int i = 0; i < 7; i++) {
        assert_false(loop_timer_active(&timers[i]));
    }
    loop_free(&loop);
}

/* Many timers started and stopped at random fire in order of their due time. */
struct many {
    struct loop *loop;
    struct loop_timer timers[500];
    int64_t last_due_ms;
    int left;
};

struct one {
    struct many *many;
    struct loop_timer *timer;
};

static void on_one(void *ctx)
{
    struct one *one = ctx;
    assert_true(one->timer->due_ms >= one->many->last_due_ms);
    assert_true(loop_now_ms(one->many->loop) >= one->timer->due_ms);
    one->many->last_due_ms = one->timer->due_ms;
    if (--one->many->left == 0) {
        loop_stop(one->many->loop);
    }
}

static void test_timer_heap(void **state)
{
    (void)state;
    struct many *many = mem_zero(sizeof(*many));
    struct one ones[500];
    many->loop = loop_new("test");
    uint32_t seed = 12345;
    for (int round = 0; round < 5; round++) {
        for (size_t i = 0; i < 500; i++) {
            seed = seed * 1664525 + 1013904223;
            ones[i] = (struct one){.many = many, .timer = &many->timers[i]};
            loop_timer_start(many->loop, &many->timers[i], seed >> 8 & 31, on_one, &ones[i]);
            if ((seed >> 20) % 3 == 0) {
                loop_timer_stop(&many->timers[(seed >> 4) % 500]);
            }
        }
    }
    for (size_t i = 0; i < 500; i++) {
        many->left += loop_timer_active(&many->timers[i]) ? 1 : 0;
    }
    assert_true(many->left > 100);
    loop_run(many->loop);
    assert_int_equal(many->left, 0);
    loop_free(&many->loop);
    mem_free(many);
}

struct restart {
    struct loop *loop;
    struct loop_timer timer;
    int count;
    int turns;
    uv_check_t check;
};

static void on_restart(void *ctx)
{
    struct restart *restart = ctx;
    if (++restart->count == 5) {
        loop_stop(restart->loop);
        return;
    }
    loop_timer_start(restart->loop, &restart->timer, 0, on_restart, restart);
}

static void on_turn(uv_check_t *check)
{
    struct restart *restart = check->data;
    restart->turns++;
}

/* A timer that restarts itself with delay 0 leaves a turn to the others each time. */
static void test_timer_restarts_itself(void **state)
{
    (void)state;
    struct restart restart = {.loop = loop_new("test")};
    assert_int_equal(uv_check_init(loop_uv(restart.loop), &restart.check), 0);
    restart.check.data = &restart;
    assert_int_equal(uv_check_start(&restart.check, on_turn), 0);
    loop_timer_start(restart.loop, &restart.timer, 0, on_restart, &restart);
    loop_run(restart.loop);
    assert_int_equal(restart.count, 5);
    assert_true(restart.turns >= 4);
    /* The check handle is left open: loop_free closes it. */
    loop_free(&restart.loop);
}

/* A timer that is freed with the loop can still be stopped by its owner. */
static void test_timer_outlives_loop(void **state)
{
    (void)state;
    struct loop *loop = loop_new("test");
    struct trace trace = {.loop = loop};
    struct mark mark = {.trace = &trace, .letter = 'x'};
    struct loop_timer timer = {.loop = NULL};
    loop_timer_start(loop, &timer, 0, on_mark, &mark);
    loop_free(&loop);
    assert_false(loop_timer_active(&timer));
    loop_timer_stop(&timer);
    assert_int_equal(trace.len, 0);
}

static void test_now_advances(void **state)
{
    (void)state;
    struct loop *loop = loop_new("test");
    int64_t start_ms = loop_now_ms(loop);
    int64_t real_ms = clock_mono_ms();
    assert_true(real_ms - start_ms < 1000 && start_ms - real_ms < 1000);
    while (clock_mono_ms() < real_ms + 20) {
    }
    assert_true(loop_now_ms(loop) >= start_ms + 15);
    loop_free(&loop);
}

/* ---- Tasks ---- */

struct tasks {
    struct trace trace;
    struct loop_task queue[3];
    struct loop_task write[3];
    struct mark marks[6];
};

static void on_write_defers_queue(void *ctx)
{
    struct tasks *tasks = ctx;
    add(&tasks->trace, 'W');
    loop_defer(tasks->trace.loop, &tasks->queue[2], LOOP_TASK_QUEUE, on_mark, &tasks->marks[2]);
    loop_defer(tasks->trace.loop, &tasks->write[2], LOOP_TASK_WRITE, on_mark, &tasks->marks[5]);
}

static void on_defer_all(void *ctx)
{
    struct tasks *tasks = ctx;
    struct loop *loop = tasks->trace.loop;
    loop_defer(loop, &tasks->write[0], LOOP_TASK_WRITE, on_write_defers_queue, tasks);
    loop_defer(loop, &tasks->queue[0], LOOP_TASK_QUEUE, on_mark, &tasks->marks[0]);
    loop_defer(loop, &tasks->write[1], LOOP_TASK_WRITE, on_mark, &tasks->marks[4]);
    loop_defer(loop, &tasks->queue[1], LOOP_TASK_QUEUE, on_mark, &tasks->marks[1]);
    /* Deferring once more changes nothing, and a cancelled task does not run. */
    loop_defer(loop, &tasks->queue[0], LOOP_TASK_QUEUE, on_mark, &tasks->marks[5]);
    loop_defer(loop, &tasks->queue[2], LOOP_TASK_QUEUE, on_mark, &tasks->marks[5]);
    loop_task_cancel(&tasks->queue[2]);
    loop_task_cancel(&tasks->queue[2]);
}

static void tasks_init(struct tasks *tasks)
{
    *tasks = (struct tasks){.trace = {.loop = loop_new("test")}};
    for (int i = 0; i < 6; i++) {
        tasks->marks[i] = (struct mark){.trace = &tasks->trace, .letter = (char)('a' + i)};
    }
}

/* The queue class runs first; what tasks defer runs in the same turn, the queue class again first.
 */
static void test_task_classes(void **state)
{
    (void)state;
    struct tasks tasks;
    tasks_init(&tasks);
    on_defer_all(&tasks);
    loop_run_once(tasks.trace.loop);
    assert_string_equal(tasks.trace.text, "abWcef");
    loop_free(&tasks.trace.loop);

    /* Deferred by a post, which runs during poll: in the turn of that post. */
    tasks_init(&tasks);
    loop_post(tasks.trace.loop, on_defer_all, &tasks);
    loop_run_once(tasks.trace.loop);
    assert_string_equal(tasks.trace.text, "abWcef");
    loop_free(&tasks.trace.loop);

    /* Deferred by a timer, which runs before poll: before anything else, and without waiting. */
    tasks_init(&tasks);
    struct loop_timer timer = {.loop = NULL};
    loop_timer_start(tasks.trace.loop, &timer, 0, on_defer_all, &tasks);
    loop_run_once(tasks.trace.loop);
    assert_string_equal(tasks.trace.text, "abWcef");
    loop_free(&tasks.trace.loop);

    /* Nobody ran the loop: freeing it runs them. */
    tasks_init(&tasks);
    on_defer_all(&tasks);
    loop_free(&tasks.trace.loop);
    assert_string_equal(tasks.trace.text, "abWcef");
}

struct endless {
    struct loop *loop;
    struct loop_task task;
    struct loop_timer timer;
    int runs;
};

static void on_endless(void *ctx)
{
    struct endless *endless = ctx;
    endless->runs++;
    loop_defer(endless->loop, &endless->task, LOOP_TASK_WRITE, on_endless, endless);
}

/* A task that defers itself without end neither starves timers nor lets the loop sleep. */
static void test_task_endless(void **state)
{
    (void)state;
    struct endless endless = {.loop = loop_new("test")};
    on_endless(&endless);
    loop_timer_start(endless.loop, &endless.timer, 20, on_stop, endless.loop);
    loop_run(endless.loop);
    assert_true(endless.runs > 100);
    loop_task_cancel(&endless.task);
    loop_free(&endless.loop);
}

/* ---- Work ---- */

struct job {
    struct loop *loop;
    pthread_t loop_thread;
    atomic_bool worked;
    bool done;
    bool stop;
};

static void do_work(void *ctx)
{
    struct job *job = ctx;
    assert_false(pthread_equal(pthread_self(), job->loop_thread));
    atomic_store(&job->worked, true);
}

static void work_done(void *ctx)
{
    struct job *job = ctx;
    assert_true(pthread_equal(pthread_self(), job->loop_thread));
    assert_true(atomic_load(&job->worked));
    job->done = true;
    if (job->stop) {
        loop_stop(job->loop);
    }
}

static void test_work(void **state)
{
    (void)state;
    struct loop *loop = loop_new("test");
    struct job job = {.loop = loop, .loop_thread = pthread_self(), .stop = true};
    loop_work(loop, do_work, work_done, &job);
    loop_run(loop);
    assert_true(job.done);
    struct job late = {.loop = loop, .loop_thread = pthread_self()};
    loop_work(loop, do_work, work_done, &late);
    loop_free(&loop);
    assert_true(late.done);
}

int main(void)
{
    (void)alarm(60); /* the watchdog: a loop that never stops ends the program */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_posts_from_threads),    cmocka_unit_test(test_loop_in_thread),
        cmocka_unit_test(test_free_runs_posts),       cmocka_unit_test(test_stop_before_run),
        cmocka_unit_test(test_timer_order),           cmocka_unit_test(test_timer_heap),
        cmocka_unit_test(test_timer_restarts_itself), cmocka_unit_test(test_timer_outlives_loop),
        cmocka_unit_test(test_now_advances),          cmocka_unit_test(test_task_classes),
        cmocka_unit_test(test_task_endless),          cmocka_unit_test(test_work),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
