#include "gateway/base/loop.h"

#include "gateway/base/buf.h"
#include "gateway/base/log.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

/* One message of another thread. */
struct post {
    void (*fn)(void *ctx);
    void *ctx;
};

struct inbox {
    struct post *posts;
    size_t count;
    size_t cap;
};

/* What must stay true:
 *  - `inbox` is touched under `inbox_lock` only; everything else by the loop's thread only, except
 *    `stop_wanted` and `async`.
 *  - `async` has been sent whenever the inbox is not empty and its drain has not begun.
 *  - `heap` is ordered by (due_ms, order); heap[i]->slot == i; `wake` is armed no later than
 * heap[0].
 *  - when the loop goes to poll with a timeout above 0, no task waits. */
struct loop {
    uv_loop_t *uv; /* own memory, so that reading the time needs no writable struct loop */
    const char *name;
    uv_async_t async;
    uv_timer_t wake;
    uv_check_t check;
    uv_prepare_t prepare;
    uv_idle_t idle; /* active while tasks are left over, so that poll does not wait */
    atomic_bool stop_wanted;
    bool running;
    bool ending;
    pthread_mutex_t inbox_lock;
    struct inbox inbox;
    struct loop_timer **heap;
    size_t heap_count;
    size_t heap_cap;
    uint64_t timer_order;
    int64_t wake_due_ms;       /* what `wake` is armed for; INT64_MAX when not armed */
    struct loop_task tasks[2]; /* list heads, by class */
    size_t task_count;
    struct loop_guest guests; /* list head */
    char *room;
};

/* ---- Inbox ---- */

void loop_post(struct loop *loop, void (*fn)(void *ctx), void *ctx)
{
    ASSERT(pthread_mutex_lock(&loop->inbox_lock) == 0);
    struct inbox *inbox = &loop->inbox;
    bool was_empty = inbox->count == 0;
    if (inbox->count == inbox->cap) {
        size_t cap = inbox->cap > 0 ? inbox->cap * 2 : 64;
        size_t size = 0;
        ASSERT(size_mul(cap, sizeof(inbox->posts[0]), &size) == ERR_OK);
        inbox->posts = mem_realloc_try(inbox->posts, size);
        ASSERT(inbox->posts != NULL);
        inbox->cap = cap;
    }
    inbox->posts[inbox->count++] = (struct post){.fn = fn, .ctx = ctx};
    ASSERT(pthread_mutex_unlock(&loop->inbox_lock) == 0);
    if (was_empty) {
        ASSERT(uv_async_send(&loop->async) == 0);
    }
}

/* Runs what was posted so far; what these post runs with the next wake-up. Returns the count. */
static size_t inbox_drain(struct loop *loop)
{
    ASSERT(pthread_mutex_lock(&loop->inbox_lock) == 0);
    struct inbox taken = loop->inbox;
    loop->inbox = (struct inbox){.posts = NULL};
    ASSERT(pthread_mutex_unlock(&loop->inbox_lock) == 0);
    for (size_t i = 0; i < taken.count; i++) {
        taken.posts[i].fn(taken.posts[i].ctx);
    }
    mem_free(taken.posts);
    return taken.count;
}

static void on_async(uv_async_t *handle)
{
    struct loop *loop = handle->data;
    (void)inbox_drain(loop);
    if (atomic_load(&loop->stop_wanted)) {
        uv_stop(loop->uv);
    }
}

void loop_stop(struct loop *loop)
{
    atomic_store(&loop->stop_wanted, true);
    ASSERT(uv_async_send(&loop->async) == 0);
}

/* ---- Timers ---- */

static bool timer_before(const struct loop_timer *a, const struct loop_timer *b)
{
    return a->due_ms != b->due_ms ? a->due_ms < b->due_ms : a->order < b->order;
}

static void heap_put(struct loop *loop, size_t slot, struct loop_timer *timer)
{
    loop->heap[slot] = timer;
    timer->slot = slot;
}

static void heap_up(struct loop *loop, struct loop_timer *timer, size_t slot)
{
    while (slot > 0) {
        size_t parent = (slot - 1) / 2;
        if (!timer_before(timer, loop->heap[parent])) {
            break;
        }
        heap_put(loop, slot, loop->heap[parent]);
        slot = parent;
    }
    heap_put(loop, slot, timer);
}

static void heap_down(struct loop *loop, struct loop_timer *timer, size_t slot)
{
    for (;;) {
        size_t child = 2 * slot + 1;
        if (child >= loop->heap_count) {
            break;
        }
        if (child + 1 < loop->heap_count &&
            timer_before(loop->heap[child + 1], loop->heap[child])) {
            child++;
        }
        if (!timer_before(loop->heap[child], timer)) {
            break;
        }
        heap_put(loop, slot, loop->heap[child]);
        slot = child;
    }
    heap_put(loop, slot, timer);
}

static void on_wake(uv_timer_t *handle);

/* Arms the one libuv timer for the first of ours. When the first is later than what is armed, the
 * early wake-up is left alone: it costs one empty turn, while re-arming would cost on every stop.
 */
static void wake_arm(struct loop *loop, int64_t least_ms)
{
    if (loop->heap_count == 0 || loop->heap[0]->due_ms >= loop->wake_due_ms) {
        return;
    }
    int64_t delay_ms = loop->heap[0]->due_ms - (int64_t)uv_now(loop->uv);
    if (delay_ms < least_ms) {
        delay_ms = least_ms;
    }
    ASSERT(uv_timer_start(&loop->wake, on_wake, (uint64_t)delay_ms, 0) == 0);
    loop->wake_due_ms = loop->heap[0]->due_ms;
}

static void on_wake(uv_timer_t *handle)
{
    struct loop *loop = handle->data;
    int64_t now_ms = (int64_t)uv_now(loop->uv);
    uint64_t last = loop->timer_order;
    /* A timer started from here on waits for the next turn even with delay 0, and is not armed
     * before the end: libuv runs its timers until none is due, and one of ours that restarts itself
     * would keep all else waiting. */
    loop->wake_due_ms = INT64_MIN;
    while (loop->heap_count > 0 && loop->heap[0]->due_ms <= now_ms && !loop->ending) {
        struct loop_timer *timer = loop->heap[0];
        if (timer->order > last) {
            break;
        }
        loop_timer_stop(timer);
        timer->fn(timer->ctx);
    }
    loop->wake_due_ms = INT64_MAX;
    wake_arm(loop, 1);
}

void loop_timer_start(struct loop *loop, struct loop_timer *timer, int64_t delay_ms,
                      void (*fn)(void *ctx), void *ctx)
{
    ASSERT(delay_ms >= 0 && fn != NULL);
    loop_timer_stop(timer);
    if (loop->heap_count == loop->heap_cap) {
        size_t cap = loop->heap_cap > 0 ? loop->heap_cap * 2 : 64;
        size_t size = 0;
        ASSERT(size_mul(cap, sizeof(struct loop_timer *), &size) == ERR_OK);
        loop->heap = mem_realloc_try(loop->heap, size);
        ASSERT(loop->heap != NULL);
        loop->heap_cap = cap;
    }
    int64_t now_ms = loop_now_ms(loop);
    timer->loop = loop;
    timer->due_ms = delay_ms < INT64_MAX - now_ms ? now_ms + delay_ms : INT64_MAX - 1;
    timer->fn = fn;
    timer->ctx = ctx;
    timer->order = ++loop->timer_order;
    loop->heap_count++;
    heap_up(loop, timer, loop->heap_count - 1);
    wake_arm(loop, 0);
}

void loop_timer_stop(struct loop_timer *timer)
{
    struct loop *loop = timer->loop;
    if (loop == NULL) {
        return;
    }
    size_t slot = timer->slot;
    ASSERT(slot < loop->heap_count && loop->heap[slot] == timer);
    struct loop_timer *last = loop->heap[--loop->heap_count];
    if (last != timer) {
        /* The last one takes the place, and goes up or down from there. */
        if (slot > 0 && timer_before(last, loop->heap[(slot - 1) / 2])) {
            heap_up(loop, last, slot);
        } else {
            heap_down(loop, last, slot);
        }
    }
    timer->loop = NULL;
}

/* ---- Tasks ---- */

void loop_defer(struct loop *loop, struct loop_task *task, enum loop_task_class task_class,
                void (*fn)(void *ctx), void *ctx)
{
    if (task->loop != NULL) {
        return;
    }
    struct loop_task *head = &loop->tasks[task_class];
    task->loop = loop;
    task->fn = fn;
    task->ctx = ctx;
    task->next = head;
    task->prev = head->prev;
    head->prev->next = task;
    head->prev = task;
    loop->task_count++;
}

void loop_task_cancel(struct loop_task *task)
{
    if (task->loop == NULL) {
        return;
    }
    task->prev->next = task->next;
    task->next->prev = task->prev;
    ASSERT(task->loop->task_count > 0);
    task->loop->task_count--;
    task->loop = NULL;
    task->next = NULL;
    task->prev = NULL;
}

/* The next task: of the queue class while there is one. NULL when none waits. */
static struct loop_task *task_first(struct loop *loop)
{
    for (size_t i = 0; i < sizeof(loop->tasks) / sizeof(loop->tasks[0]); i++) {
        if (loop->tasks[i].next != &loop->tasks[i]) {
            return loop->tasks[i].next;
        }
    }
    return NULL;
}

static void on_idle(uv_idle_t *handle)
{
    (void)handle; /* Being active is all it is for. */
}

#define TASK_ROUNDS 16

/* Runs the tasks, and those they defer, for a bounded number of rounds; a task that defers itself
 * without end must not keep the sockets waiting. */
static void run_tasks(struct loop *loop)
{
    for (int round = 0; round < TASK_ROUNDS && loop->task_count > 0; round++) {
        size_t left = loop->task_count;
        while (left-- > 0) {
            struct loop_task *task = task_first(loop);
            if (task == NULL) {
                break;
            }
            loop_task_cancel(task);
            task->fn(task->ctx);
        }
    }
    if (loop->task_count > 0) {
        ASSERT(uv_idle_start(&loop->idle, on_idle) == 0);
    } else {
        ASSERT(uv_idle_stop(&loop->idle) == 0);
    }
}

/* After poll: what the events and posts of this turn deferred. */
static void on_check(uv_check_t *handle)
{
    run_tasks(handle->data);
}

/* Before poll: what timers, close callbacks and code outside the loop deferred. */
static void on_prepare(uv_prepare_t *handle)
{
    run_tasks(handle->data);
    log_flush();
}

/* ---- Work ---- */

struct work {
    uv_work_t request;
    void (*work)(void *ctx);
    void (*done)(void *ctx);
    void *ctx;
};

static void on_work(uv_work_t *request)
{
    struct work *work = request->data;
    work->work(work->ctx);
}

static void on_work_done(uv_work_t *request, int status)
{
    /* Nobody cancels these requests, so `work` has run. */
    ASSERT(status == 0);
    struct work *work = request->data;
    work->done(work->ctx);
    mem_free(work);
}

void loop_work(struct loop *loop, void (*work)(void *ctx), void (*done)(void *ctx), void *ctx)
{
    struct work *item = mem_alloc(sizeof(*item));
    *item = (struct work){.work = work, .done = done, .ctx = ctx};
    item->request.data = item;
    ASSERT(uv_queue_work(loop->uv, &item->request, on_work, on_work_done) == 0);
}

/* ---- The loop ---- */

/* A peer that goes away while we write is an error code for one stream, not a signal for the
 * process. Only the default action, which would end the process, is replaced. */
static void ignore_sigpipe(void)
{
    struct sigaction now;
    ASSERT(sigaction(SIGPIPE, NULL, &now) == 0);
    if (now.sa_handler == SIG_DFL) {
        struct sigaction ignore = {.sa_handler = SIG_IGN};
        ASSERT(sigaction(SIGPIPE, &ignore, NULL) == 0);
    }
}

struct loop *loop_new(const char *name)
{
    ignore_sigpipe();
    struct loop *loop = mem_zero(sizeof(*loop));
    loop->uv = mem_zero(sizeof(*loop->uv));
    loop->name = name;
    loop->wake_due_ms = INT64_MAX;
    loop->room = mem_alloc(LOOP_ROOM_BYTES);
    for (size_t i = 0; i < sizeof(loop->tasks) / sizeof(loop->tasks[0]); i++) {
        loop->tasks[i].next = &loop->tasks[i];
        loop->tasks[i].prev = &loop->tasks[i];
    }
    loop->guests.next = &loop->guests;
    loop->guests.prev = &loop->guests;
    ASSERT(pthread_mutex_init(&loop->inbox_lock, NULL) == 0);
    ASSERT(uv_loop_init(loop->uv) == 0);
    loop->uv->data = loop;
    ASSERT(uv_async_init(loop->uv, &loop->async, on_async) == 0);
    ASSERT(uv_timer_init(loop->uv, &loop->wake) == 0);
    ASSERT(uv_check_init(loop->uv, &loop->check) == 0);
    ASSERT(uv_prepare_init(loop->uv, &loop->prepare) == 0);
    ASSERT(uv_idle_init(loop->uv, &loop->idle) == 0);
    loop->async.data = loop;
    loop->wake.data = loop;
    loop->check.data = loop;
    loop->prepare.data = loop;
    loop->idle.data = loop;
    ASSERT(uv_check_start(&loop->check, on_check) == 0);
    ASSERT(uv_prepare_start(&loop->prepare, on_prepare) == 0);
    /* `async` alone keeps a loop running that has nothing else to do. */
    uv_unref((uv_handle_t *)&loop->wake);
    uv_unref((uv_handle_t *)&loop->check);
    uv_unref((uv_handle_t *)&loop->prepare);
    uv_unref((uv_handle_t *)&loop->idle);
    return loop;
}

static bool is_own(const struct loop *loop, const uv_handle_t *handle)
{
    return handle == (const uv_handle_t *)&loop->async ||
           handle == (const uv_handle_t *)&loop->wake ||
           handle == (const uv_handle_t *)&loop->check ||
           handle == (const uv_handle_t *)&loop->prepare ||
           handle == (const uv_handle_t *)&loop->idle;
}

static void close_foreign(uv_handle_t *handle, void *arg)
{
    if (!is_own(arg, handle) && !uv_is_closing(handle)) {
        uv_close(handle, NULL);
    }
}

static void close_own(uv_handle_t *handle, void *arg)
{
    ASSERT(is_own(arg, handle));
    uv_close(handle, NULL);
}

static void evict_guests(struct loop *loop)
{
    struct loop_guest *guest = loop->guests.next;
    while (guest != &loop->guests) {
        /* evict() closes handles; guests leave later, from close callbacks. */
        struct loop_guest *next = guest->next;
        guest->evict(guest);
        guest = next;
    }
}

/* Ends everything that is left: guests by their own way, so that their users hear of it, then
 * handles nobody closed, then posts and tasks these brought forth, until nothing is left. */
static void wind_down(struct loop *loop)
{
    uv_unref((uv_handle_t *)&loop->async);
    bool more = true;
    for (int round = 0; more; round++) {
        /* A user that opens something new for each thing closed would never let go. */
        ASSERT(round < 1000);
        evict_guests(loop);
        uv_walk(loop->uv, close_foreign, loop);
        (void)uv_run(loop->uv, UV_RUN_DEFAULT);
        run_tasks(loop);
        more = inbox_drain(loop) > 0 || loop->task_count > 0 ||
               loop->guests.next != &loop->guests || uv_loop_alive(loop->uv) != 0;
    }
}

void loop_free(struct loop **loop_ptr)
{
    struct loop *loop = *loop_ptr;
    if (loop == NULL) {
        return;
    }
    ASSERT(!loop->running);
    loop->ending = true;
    wind_down(loop);
    /* Owners may still stop their timers, after the loop is gone. */
    while (loop->heap_count > 0) {
        loop_timer_stop(loop->heap[loop->heap_count - 1]);
    }
    uv_walk(loop->uv, close_own, loop);
    (void)uv_run(loop->uv, UV_RUN_DEFAULT);
    ASSERT(uv_loop_close(loop->uv) == 0);
    ASSERT(loop->inbox.count == 0);
    ASSERT(pthread_mutex_destroy(&loop->inbox_lock) == 0);
    mem_free(loop->inbox.posts);
    mem_free(loop->heap);
    mem_free(loop->room);
    mem_free(loop->uv);
    mem_free(loop);
    *loop_ptr = NULL;
}

/* The first thread's name is the process's name and stays. */
static void name_thread(const struct loop *loop)
{
    if (syscall(SYS_gettid) == getpid()) {
        return;
    }
    char name[16]; /* what the kernel keeps, with the NUL */
    size_t len = strnlen(loop->name, sizeof(name) - 1);
    memcpy(name, loop->name, len);
    name[len] = '\0';
    (void)pthread_setname_np(pthread_self(), name); /* only for people; nothing depends on it */
}

void loop_run(struct loop *loop)
{
    name_thread(loop);
    uv_update_time(loop->uv);
    loop->running = true;
    log_collect(true);
    do {
        (void)uv_run(loop->uv, UV_RUN_DEFAULT);
    } while (!atomic_load(&loop->stop_wanted));
    log_collect(false);
    loop->running = false;
    atomic_store(&loop->stop_wanted, false);
}

void loop_run_once(struct loop *loop)
{
    uv_update_time(loop->uv);
    loop->running = true;
    (void)uv_run(loop->uv, UV_RUN_NOWAIT);
    loop->running = false;
}

uv_loop_t *loop_uv(struct loop *loop)
{
    return loop->uv;
}

const char *loop_name(const struct loop *loop)
{
    return loop->name;
}

int64_t loop_now_ms(const struct loop *loop)
{
    /* Between turns nobody refreshes the cached time. */
    if (!loop->running) {
        uv_update_time(loop->uv);
    }
    return (int64_t)uv_now(loop->uv);
}

/* ---- Guests ---- */

void loop_guest_join(struct loop *loop, struct loop_guest *guest,
                     void (*evict)(struct loop_guest *guest))
{
    ASSERT(guest->next == NULL);
    guest->evict = evict;
    guest->next = &loop->guests;
    guest->prev = loop->guests.prev;
    loop->guests.prev->next = guest;
    loop->guests.prev = guest;
}

void loop_guest_leave(struct loop_guest *guest)
{
    if (guest->next == NULL) {
        return;
    }
    guest->prev->next = guest->next;
    guest->next->prev = guest->prev;
    guest->next = NULL;
    guest->prev = NULL;
}

char *loop_room(struct loop *loop)
{
    return loop->room;
}
