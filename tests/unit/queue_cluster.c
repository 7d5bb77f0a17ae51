/* A Cluster of two masters without replicas: what must hold while a shard changes its node, told
 * apart by the nodes' own words. */
#include "tests/unit/queue_harness.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

struct cluster {
    struct rig rig;
    pid_t pids[2];
    uint16_t ports[2];
    struct queue_host hosts[2];
};

/* One whose bus port, 10,000 above, is a port too. */
static uint16_t free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    uint16_t port = 0;
    while (port == 0 || port > UINT16_MAX - 10000) {
        socklen_t len = sizeof(address);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        address.sin_port = 0;
        assert_int_equal(bind(fd, (struct sockaddr *)&address, len), 0);
        assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &len), 0);
        port = ntohs(address.sin_port);
        (void)close(fd);
    }
    return port;
}

static pid_t start_node(const char *dir, size_t index, uint16_t port)
{
    char text[16];
    char file[32];
    (void)snprintf(text, sizeof(text), "%u", port);
    (void)snprintf(file, sizeof(file), "nodes-%zu.conf", index);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* when a test gives up */
        (void)execlp("redis-server", "redis-server", "--port", text, "--bind", "127.0.0.1", "--dir",
                     dir, "--cluster-enabled", "yes", "--cluster-config-file", file, "--save", "",
                     "--logfile", "redis.log", "--maxmemory-policy", "noeviction", (char *)NULL);
        _exit(127);
    }
    return pid;
}

/* What redis-cli says on standard output, without the line's end. */
static void PRINTF_LIKE(4, 5)
    say_to(const struct cluster *cluster, size_t node, char out[200], const char *format, ...)
{
    char words[160];
    char line[240];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(words, sizeof(words), format, args);
    va_end(args);
    (void)snprintf(line, sizeof(line), "redis-cli -p %u %s 2>&1", cluster->ports[node], words);
    FILE *answer = popen(line, "r");
    assert_non_null(answer);
    if (fgets(out, 200, answer) == NULL) {
        out[0] = '\0';
    }
    while (fgetc(answer) != EOF) {
    }
    (void)pclose(answer);
    out[strcspn(out, "\r\n")] = '\0';
}

/* Says it again until the answer begins like that. */
static void say_until(const struct cluster *cluster, size_t node, const char *wanted,
                      const char *words)
{
    char answer[200];
    for (int i = 0; i < 3000; i++) {
        say_to(cluster, node, answer, "%s", words);
        if (strncmp(answer, wanted, strlen(wanted)) == 0) {
            return;
        }
        (void)usleep(10000);
    }
    fail_msg("%s: %s", words, answer);
}

static int setup(void **state)
{
    struct cluster *cluster = mem_zero(sizeof(*cluster));
    char words[80];
    rig_init(&cluster->rig);
    for (size_t i = 0; i < 2; i++) {
        cluster->ports[i] = free_port();
        cluster->pids[i] = start_node(cluster->rig.dir, i, cluster->ports[i]);
        cluster->hosts[i] = (struct queue_host){.name = "127.0.0.1", .port = cluster->ports[i]};
        say_until(cluster, i, "PONG", "ping");
    }
    say_until(cluster, 0, "OK", "cluster set-config-epoch 1");
    say_until(cluster, 1, "OK", "cluster set-config-epoch 2");
    for (int first = 0; first < 16384; first += 512) { /* ADDSLOTSRANGE came with Redis 7 */
        char line[6 * 512 + 64];
        size_t len = (size_t)snprintf(line, sizeof(line), "redis-cli -p %u cluster addslots",
                                      cluster->ports[first < 8192 ? 0 : 1]);
        for (int slot = first; slot < first + 512; slot++) {
            len += (size_t)snprintf(line + len, sizeof(line) - len, " %d", slot);
        }
        (void)snprintf(line + len, sizeof(line) - len, " >/dev/null");
        assert_int_equal(system(line), 0);
    }
    (void)snprintf(words, sizeof(words), "cluster meet 127.0.0.1 %u", cluster->ports[1]);
    say_until(cluster, 0, "OK", words);
    say_until(cluster, 0, "cluster_state:ok", "cluster info");
    say_until(cluster, 1, "cluster_state:ok", "cluster info");
    cluster->rig.conf.socket_path = NULL;
    cluster->rig.conf.topology = QUEUE_CLUSTER;
    cluster->rig.conf.hosts = cluster->hosts;
    cluster->rig.conf.host_count = 2;
    cluster->rig.conf.managed = false;
    *state = cluster;
    return 0;
}

static int teardown(void **state)
{
    struct cluster *cluster = *state;
    for (size_t i = 0; i < 2; i++) {
        (void)kill(cluster->pids[i], SIGKILL);
        (void)waitpid(cluster->pids[i], NULL, 0);
    }
    rig_release(&cluster->rig);
    mem_free(cluster);
    return 0;
}

/* Which node has the first shard, its slot. */
static size_t holder(const struct cluster *cluster, int *out_slot)
{
    char answer[200];
    say_to(cluster, 0, answer, "cluster keyslot {h0}");
    *out_slot = (int)strtol(answer, NULL, 10);
    return *out_slot < 8192 ? 0 : 1;
}

static void turn(struct rig *rig)
{
    struct loop_timer timer = {0};
    loop_timer_start(rig->loop, &timer, 10, rig_tick, rig);
    loop_run(rig->loop);
    loop_timer_stop(&timer);
}

/* A message that comes while its shard's new node is not connected yet waits for that, and then for
 * the replicas, which the new node has none of: nobody may hear a yes. */
static void test_moved_to_a_new_node(void **state)
{
    static struct draft draft;
    struct cluster *cluster = *state;
    struct rig *rig = &cluster->rig;
    struct handle handle;
    struct queue_conf conf = rig->conf;
    char answer[200];
    char id[200];
    int slot = 0;
    size_t from = holder(cluster, &slot);
    size_t to = 1 - from;
    conf.durability = QUEUE_REPLICATED;
    handle_open(rig, &handle, &conf);
    say_to(cluster, to, id, "cluster myid");
    say_to(cluster, to, answer, "cluster setslot %d node %s", slot, id);
    assert_string_equal(answer, "OK");
    say_to(cluster, to, answer, "client pause 3000 all");
    assert_string_equal(answer, "OK");
    do { /* a slot with keys does not leave, and the sweeper writes some */
        say_to(cluster, from, answer, "flushall");
        say_to(cluster, from, answer, "cluster setslot %d node %s", slot, id);
    } while (strcmp(answer, "OK") != 0);
    struct outcome outcome = {.rig = rig};
    int status = ERR_UNAVAILABLE;
    for (int i = 0; i < 2000 && status != 0; i++) {
        draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
        status = queue_enqueue(handle.queue, &draft.message, 0, NULL, on_enqueued, &outcome);
        if (status != 0) {
            turn(rig);
        }
    }
    assert_int_equal(status, 0);
    RIG_WAIT(rig, outcome.done == 1);
    say_to(cluster, to, answer, "exists {h0}:m:%s", draft.id);
    assert_string_equal(answer, "1");
    assert_int_equal(outcome.status, ERR_TIMEOUT);
    handle_close(&handle);
}

/* A shard that is on the move while its connection is lost is up again when the move has ended,
 * though no connection is made then: delayed batches go on. */
static void test_mended_without_a_connection(void **state)
{
    static struct draft draft;
    struct cluster *cluster = *state;
    struct rig *rig = &cluster->rig;
    struct handle handle;
    struct queue_conf conf = rig->conf;
    char answer[200];
    char id[200];
    int slot = 0;
    size_t from = holder(cluster, &slot);
    conf.durability = QUEUE_MEMORY;
    handle_open(rig, &handle, &conf);
    say_to(cluster, 1 - from, id, "cluster myid");
    say_to(cluster, from, answer, "cluster setslot %d migrating %s", slot, id);
    assert_string_equal(answer, "OK");
    for (int i = 0; i < 2000 && queue_is_up(handle.queue); i++) {
        turn(rig); /* until the next sweep is told that the slot is on the move */
    }
    assert_false(queue_is_up(handle.queue));
    say_to(cluster, from, answer, "client kill type normal");
    RIG_WAIT(rig, !handle.up);
    say_to(cluster, from, answer, "cluster setslot %d stable", slot);
    assert_string_equal(answer, "OK");
    RIG_WAIT(rig, handle.up);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    int64_t due_ms = clock_wall_ms() + 300;
    size_t hints = handle.hints;
    assert_int_equal(enqueue_wait(&handle, &draft.message, due_ms, NULL, NULL), 0);
    RIG_WAIT(rig, handle.hints > hints); /* the sweeper made it ready */
    handle_close(&handle);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_moved_to_a_new_node, setup, teardown),
        cmocka_unit_test_setup_teardown(test_mended_without_a_connection, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
