/* heave-queue-bench: what the queue costs, from enqueue to the last settlement, and whether two
 * holders ever got the same batch. bench/README.md explains the output. */
#include "bench/queue/modes.h"

#include "gateway/base/buf.h"

#include <stdio.h>

int main(int argc, char **argv)
{
    struct bench_options options;
    struct err err = {0};
    mem_setup();
    if (bench_options_read(argc, argv, &options, &err) != 0) {
        (void)fprintf(stderr, "heave-queue-bench: %s\n", err.text);
        return 2;
    }
    if (options.help) {
        bench_options_help();
        return 0;
    }
    switch (options.mode) {
    case BENCH_COST:
        bench_cost(&options);
        return 0;
    case BENCH_TOGETHER:
        bench_together(&options);
        return 0;
    case BENCH_ENQUEUE:
        bench_enqueue(&options);
        return 0;
    case BENCH_CLAIMS:
        return bench_claims(&options) ? 0 : 1;
    }
    return 2;
}
