/* The embedded server: starts, comes back, is alone in its directory, and is inherited in good
 * order. */
#include "tests/unit/queue_harness.h"

#include "queue/embedded_words.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

static void test_start_restart_stop(void **state)
{
    (void)state;
    struct rig rig;
    struct stat info;
    char path[128];
    rig_init(&rig);
    rig_start_server(&rig);
    int pid = embedded_pid(rig.embedded);
    assert_true(pid > 0);
    (void)snprintf(path, sizeof(path), "%s/redis.conf", rig.dir);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    assert_int_equal(kill(pid, SIGKILL), 0);
    RIG_WAIT(&rig, rig.downs == 1 && rig.ups == 2);
    assert_non_null(strstr(rig.why, "signal 9"));
    assert_int_not_equal(embedded_pid(rig.embedded), pid);
    pid = embedded_pid(rig.embedded);
    rig_stop_server(&rig);
    assert_int_not_equal(kill(pid, 0), 0);
    rig_release(&rig);
}

static void test_one_gateway_a_directory(void **state)
{
    (void)state;
    struct rig rig;
    struct embedded *second = NULL;
    struct err err = {0};
    rig_init(&rig);
    rig_start_server(&rig);
    assert_int_equal(
        embedded_start(rig.loop, &rig.embedded_conf, &rig_embedded_ops, &rig, &second, &err),
        ERR_BUSY);
    assert_non_null(strstr(err.text, rig.dir));
    rig_release(&rig);
}

/* Whether the process runs; one that nobody has reaped yet does not. */
static bool running(int pid)
{
    char path[64];
    char state = 'Z';
    (void)snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (file != NULL) {
        if (fscanf(file, "%*d %*s %c", &state) != 1) {
            state = 'Z';
        }
        (void)fclose(file);
    }
    return state != 'Z';
}

/* Runs a gateway's part in a process of its own and tells its server's pid once that is up. */
static NORETURN void be_gateway(const char *dir, int out_fd)
{
    struct rig rig = {.embedded_conf = {.data_dir = dir, .durability = QUEUE_FSYNC}};
    struct err err = {0};
    rig.loop = loop_new("gateway");
    if (embedded_start(rig.loop, &rig.embedded_conf, &rig_embedded_ops, &rig, &rig.embedded,
                       &err) != 0) {
        _exit(1);
    }
    while (rig.ups == 0) {
        loop_run(rig.loop);
    }
    int pid = embedded_pid(rig.embedded);
    if (write(out_fd, &pid, sizeof(pid)) != (ssize_t)sizeof(pid)) {
        _exit(1);
    }
    for (;;) {
        (void)pause();
    }
}

static void test_after_kill_of_the_gateway(void **state)
{
    (void)state;
    struct rig rig;
    int fds[2];
    int server = 0;
    rig_init(&rig);
    for (int round = 0; round < 3; round++) {
        assert_int_equal(pipe(fds), 0);
        pid_t gateway = fork();
        if (gateway == 0) {
            be_gateway(rig.dir, fds[1]);
        }
        (void)close(fds[1]);
        assert_int_equal(read(fds[0], &server, sizeof(server)), sizeof(server));
        (void)close(fds[0]);
        assert_int_equal(kill(gateway, SIGKILL), 0);
        assert_int_equal(waitpid(gateway, NULL, 0), gateway);
        rig_start_server(&rig); /* at once, whatever the old server is doing */
        assert_int_not_equal(embedded_pid(rig.embedded), server);
        assert_false(running(server));
        rig_stop_server(&rig);
    }
    rig_release(&rig);
}

static void test_reasons(void **state)
{
    (void)state;
    struct rig rig;
    struct err err = {0};
    rig_init(&rig);
    rig.embedded_conf.server_program = "no-such-redis-server";
    assert_int_equal(
        embedded_start(rig.loop, &rig.embedded_conf, &rig_embedded_ops, &rig, &rig.embedded, &err),
        ERR_IO);
    assert_non_null(strstr(err.text, "no-such-redis-server"));
    rig.embedded_conf.server_program = NULL;
    rig.embedded_conf.data_dir = "/proc/nowhere";
    assert_int_equal(
        embedded_start(rig.loop, &rig.embedded_conf, &rig_embedded_ops, &rig, &rig.embedded, &err),
        ERR_IO);
    assert_non_null(strstr(err.text, "/proc/nowhere"));
    rig.embedded_conf.data_dir = rig.dir;
    /* A program that says why and ends: its words are in the sentence. */
    char script[128];
    (void)snprintf(script, sizeof(script), "%s/server", rig.dir);
    FILE *file = fopen(script, "w");
    assert_non_null(file);
    (void)fputs("#!/bin/sh\necho first\necho 'Fatal: disk is full'\nexit 3\n", file);
    (void)fclose(file);
    assert_int_equal(chmod(script, 0700), 0);
    rig.embedded_conf.server_program = script;
    assert_int_equal(
        embedded_start(rig.loop, &rig.embedded_conf, &rig_embedded_ops, &rig, &rig.embedded, &err),
        0);
    RIG_WAIT(&rig, rig.downs >= 2);
    assert_non_null(strstr(rig.why, "code 3"));
    assert_non_null(strstr(rig.why, "disk is full"));
    rig_release(&rig);
}

static void test_long_directory(void **state)
{
    (void)state;
    struct rig rig;
    char dir[300];
    rig_init(&rig);
    size_t len = (size_t)snprintf(dir, sizeof(dir), "%s/", rig.dir);
    memset(dir + len, 'd', 120);
    dir[len + 120] = '\0';
    char *path = embedded_socket_path(dir);
    assert_true(strlen(path) < 100);
    char *again = embedded_socket_path(dir);
    assert_string_equal(path, again);
    rig.embedded_conf.data_dir = dir;
    rig_start_server(&rig);
    assert_int_equal(access(path, F_OK), 0);
    rig_stop_server(&rig);
    *strrchr(path, '/') = '\0';
    assert_int_equal(rmdir(path), 0);
    mem_free(path);
    mem_free(again);
    rig_release(&rig);
}

/* What an operator has to do stands in the sentence. */
static void test_words(void **state)
{
    (void)state;
    char why[500];
    struct embedded_end end = {
        .output = SPAN_LIT(
            "9:M 1 Nov 2026 14:51:25.185 # Short write while writing to the AOF file: "
            "(nwritten=7, expected=9)\n9:M 1 Nov 2026 14:51:25.185 # Can't recover. "
            "Exiting...\n"),
        .how = "ended with code 1",
        .data_dir = "/var/lib/heave",
        .free_bytes = 2048,
        .split_files = true,
    };
    embedded_explain(&end, why, sizeof(why));
    assert_non_null(strstr(why, "The disk is full: /var/lib/heave has 2 KiB left"));
    assert_non_null(strstr(why, "words: Can't recover. Exiting..."));
    end.output = SPAN_LIT("9:M # Bad file format reading the append only file x: make a backup");
    embedded_explain(&end, why, sizeof(why));
    assert_non_null(
        strstr(why, "redis-check-aof --fix appendonlydir/appendonly.aof.manifest\" in it"));
    end.split_files = false;
    embedded_explain(&end, why, sizeof(why));
    assert_non_null(strstr(why, "redis-check-aof --fix appendonly.aof\""));
    end.output = SPAN_LIT("first\n\nlast\n\n");
    embedded_explain(&end, why, sizeof(why));
    assert_string_equal(why, "The embedded redis-server ended with code 1. Its last words: last");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_start_restart_stop),
        cmocka_unit_test(test_one_gateway_a_directory),
        cmocka_unit_test(test_after_kill_of_the_gateway),
        cmocka_unit_test(test_reasons),
        cmocka_unit_test(test_long_directory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
