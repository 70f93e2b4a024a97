/* What NVML answers, as the test's environment has it: loaded by the real pynvml in place of the driver's library.

   FAKE_INIT, FAKE_COUNT, FAKE_MEMORY: the error that this call returns; FAKE_CARDS: how many cards (1);
   FAKE_LOST: the index of a card that has fallen off the bus; FAKE_BARE: nothing optional is supported.
   Built with -DOLD_DRIVER it has none of the functions that came with driver 510. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };
#define MIB (1ull << 20)

struct memory { unsigned long long total, free, used; };
struct process { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; };

static int number(const char *name, int otherwise)
{
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

static int optional(void) { return getenv("FAKE_BARE") ? NOT_SUPPORTED : OK; }

static int index_of(void *card) { return (int)(intptr_t)card - 1; }

int nvmlInitWithFlags(unsigned flags) { (void)flags; return number("FAKE_INIT", OK); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int error) { (void)error; return "an error that pynvml does not know"; }

int nvmlSystemGetDriverVersion(char *text, unsigned length)
{
    snprintf(text, length, "580.95.05");
    return optional();
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    *count = (unsigned)number("FAKE_CARDS", 1);
    return number("FAKE_COUNT", OK);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **card)
{
    *card = (void *)(intptr_t)(index + 1);
    return (int)index == number("FAKE_LOST", -1) ? GPU_IS_LOST : OK;
}

int nvmlDeviceGetMemoryInfo(void *card, struct memory *memory)
{
    memory->total = 16376 * MIB;
    memory->used = 2376 * MIB + index_of(card) * MIB;
    memory->free = memory->total - memory->used;
    return number("FAKE_MEMORY", OK);
}

int nvmlDeviceGetName(void *card, char *text, unsigned length)
{
    (void)card;
    snprintf(text, length, "NVIDIA GeForce RTX 4080");
    return optional();
}

int nvmlDeviceGetUUID(void *card, char *text, unsigned length)
{
    snprintf(text, length, "GPU-%d0000000-aaaa-bbbb-cccc-000000000000", index_of(card));
    return optional();
}

int nvmlDeviceGetCudaComputeCapability(void *card, int *major, int *minor)
{
    (void)card;
    *major = 8;
    *minor = 9;
    return optional();
}

static int list(unsigned *count, struct process *into, const struct process *from, unsigned have)
{
    if (optional() != OK)
        return NOT_SUPPORTED;
    if (*count < have) {
        *count = have;
        return INSUFFICIENT_SIZE;
    }
    *count = have;
    memcpy(into, from, have * sizeof *from);
    return OK;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetComputeRunningProcesses_v3(void *card, unsigned *count, struct process *into)
{
    static const struct process computing[] = {{100, 300 * MIB, 0, 0}, {200, 1500 * MIB, 0, 0}, {300, ~0ull, 0, 0}};
    return list(count, into, computing, index_of(card) == 0 ? 3 : 0);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *card, unsigned *count, struct process *into)
{
    static const struct process drawing[] = {{100, 300 * MIB, 0, 0}, {400, 64 * MIB, 0, 0}};
    return list(count, into, drawing, index_of(card) == 0 ? 2 : 0);
}
#endif

int nvmlSystemGetProcessName(unsigned pid, char *text, unsigned length)
{
    if (pid == 400)
        snprintf(text, length, "/usr/bin/\xff\xfe");
    else
        snprintf(text, length, pid == 100 ? "/usr/lib/xorg/Xorg" : "/opt/llama/llama-server");
    return pid == 300 ? NOT_FOUND : OK;
}
