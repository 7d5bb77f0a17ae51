#include "bench/queue/modes.h"
bool bench_claims(const struct bench_options *options)
{
    (void)options;
    return true;
}
