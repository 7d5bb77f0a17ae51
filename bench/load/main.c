/* heave-load: runs a load and prints what became of it as one line of JSON. */
#include "bench/load/load.h"

#include <signal.h>
#include <sys/resource.h>

enum {
    EXIT_ALL = 0,
    EXIT_NOT_ALL = 1,
    EXIT_USAGE = 2,
};

/* Thousands of connections need as many descriptors; what cannot be had shows as errors. */
static void raise_descriptors(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static int print_result(const struct load *load)
{
    struct buf line;
    buf_init(&line, 65536);
    int rc = tally_json(&load->tally, load->settled_us - load->start_us, &line);
    if (rc == 0 && (printf("%.*s\n", SPAN_FMT(buf_span(&line))) < 0 || fflush(stdout) != 0)) {
        rc = ERR_IO;
    }
    buf_release(&line);
    return rc;
}

static int run(const struct load_options *options)
{
    struct load *load = mem_zero(sizeof(*load));
    struct err err;
    int status = EXIT_NOT_ALL;
    int rc = load_run(load, options, &err);
    if (rc != 0) {
        (void)fprintf(stderr, "heave-load: %s\n", err.text);
    } else if (print_result(load) == 0 && load_complete(load)) {
        status = EXIT_ALL;
    }
    if (load_release(load) != 0) {
        (void)fprintf(stderr, "heave-load: %s could not be written whole.\n", options->ids);
        status = EXIT_NOT_ALL;
    }
    mem_free(load);
    return status;
}

int main(int argc, char **argv)
{
    struct load_options options;
    struct err err;
    int rc = load_options_read(argc, argv, &options, &err);
    if (rc == 1) {
        load_options_help();
        return EXIT_ALL;
    }
    if (rc != 0) {
        (void)fprintf(stderr, "heave-load: %s\n", err.text);
        return EXIT_USAGE;
    }
    (void)signal(SIGPIPE, SIG_IGN);
    raise_descriptors();
    return run(&options);
}
