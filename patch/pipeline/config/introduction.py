"""The hand-written part of config/README.md; its YAML blocks are checked by a test."""

INTRODUCTION = """\
<!-- Made by `python -m patch.pipeline.config.document` from patch/pipeline/config/; edit it there. -->

# Configuration

One YAML file is one experiment. `snakemake` runs `config/demo.yaml`; another file is named on the command line:

```sh
snakemake --cores all --configfile config/gemma-270m.yaml
snakemake -n --configfile config/paper.yaml
```

| File | What it is |
| --- | --- |
| [demo.yaml](demo.yaml) | the embedded default: small models trained on the spot, on a CPU, in minutes |
| [gemma-270m.yaml](gemma-270m.yaml) | a real pretrained model from a package, on a CPU |
| [paper.yaml](paper.yaml) | the paper's five models, on GPUs |
| [ablations/](ablations) | the paper's other tables; `demo.yaml` and `demo-seeds.yaml` are all of them in small |
| [published.json](published.json) | the paper's numbers, to print beside ours |
| [schema.json](schema.json) | the JSON schema of a configuration, for editors |

A file is checked before anything runs. A key that does not exist, a model that the grid names but nobody
defines, or a tile that does not divide a layer stops it with the key, its value, and what would be right.

Keys that stand twice in one mapping, aliases that repeat themselves without end, numbers that are not finite or have
more than 64 bits, and texts of several lines or with control characters are refused with the file and the line, or
the key.

## A configuration is code

Run a configuration only if you would run a program of the same author:

- `text: "module:attribute"` of a corpus, and `package` of a model, import a Python module: of an installed package, or
  of the folder that Snakemake runs in.
- `include_path` names a folder of lm-eval's task files, whose `!function module.name` lm-eval imports and calls.
- Snakemake reads a file given by `--configfile` before this software does, and takes it for a template, whose Python
  expressions it evaluates, where the file says `__use_yte__: true`. Such a file is refused, but only then. Aliases
  that repeat themselves without end can keep that reader busy, too.

`python -m patch plan --configfile FILE` checks a file from elsewhere without any of that: it imports nothing that the
file names. Models and masks from elsewhere are data: no code of theirs is run.

## How a file is laid out

| Section | Says |
| --- | --- |
| `experiment` | the name; results go to `results/<experiment>/` |
| `corpora` | where text comes from, and how it is shared out to train, calibration, validation and test |
| `models` | the models, and where their weights come from |
| `calibration`, `pruning` | the text that one-shot methods see, and their settings |
| `learning` | how masks are learned |
| `quantization` | how weights are rounded in the blocks of the grid that say so |
| `evaluation` | perplexity and zero-shot tasks |
| `speedup` | how the speed of generation with the masks is measured, where it is |
| `resources` | the device and what jobs may ask for |
| `tile`, `seeds`, `grid` | which runs exist |

`grid` is a list of blocks. A block stands for every combination of its methods, sparsities and tiles with
the models and seeds. A run that several blocks name exists once. What a run starts from (a one-shot mask, for
instance) is made even if the grid does not name it.

A key `extends` names a configuration that a file goes on top of: mappings are merged, lists are replaced. Several
files after `--configfile` do the same.

## How to add something

Each snippet is the whole change. Write it into a copy of a configuration, or into a file of its own, here
`mine.yaml`, that goes on top of one: mappings are merged, lists are replaced.

```sh
snakemake --cores all --configfile config/demo.yaml mine.yaml
```

**A ratio** is a number in a block's `sparsity`, the share of zeros in the pruned layers. Hybrid masks go from
0 to 0.5, since a 2:4 tile is half zeros. `N:M` patterns fix their own.

```yaml
grid:
  - methods: [dense]
  - methods: [patch]
    sparsity: [0.45, 0.4, 0.35, 0.25]
```

**A seed** repeats calibration and learning. Methods without chance, such as magnitude, run once.

```yaml
seeds: [0, 1, 2]
```

**A tile size** is a multiple of 4 that divides every layer, or is larger: a tile ends with its layer, and `matrix` is
one tile a layer.

```yaml
grid:
  - methods: [patch]
    sparsity: [0.45]
    tiles: [matrix, 32, 16, 8]
```

**An ablation** varies settings of a learning run. `table` gives its runs a table of their own; `reuse` names
experiments whose masks are taken where they were made with the same settings.

```yaml
experiment: mine
reuse: [demo]
grid:
  - methods: [patch-joint]
    models: [qwen]
    sparsity: [0.45]
    vary: {tile_prior: [none, wanda], target: [global, layer]}
    table: where_tiles_start
```

**A mask that was made elsewhere** is named under `imports` ([docs/masks.md](../docs/masks.md) has the formats). The
method `import` evaluates it, beside the published numbers of the method that made it; learning can start from one.

```yaml
imports:
  theirs:
    model: qwen
    method: maskllm
    source: {kind: hub, repo: owner/name, file: mask_compressed.npz}
learning:
  methods:
    patch-tile: {frozen_mask: import}
grid:
  - methods: [import]
  - methods: [patch-tile]
    models: [qwen]
    sparsity: [0.45]
```

**Quantised weights** are a block that repeats others: its runs have the masks of those, and 4-bit weights.

```yaml
grid:
  - methods: [sparsegpt]
    pattern: "2:4"
  - methods: [sparsegpt]
    pattern: "2:4"
    quantization: absmax
  - methods: [sparsegpt]
    pattern: "2:4"
    quantization: slim-lora
```

**Statistics of the dense model**, taken once for all one-shot methods and ratios, in the place of each method's own
walk through the model that it prunes ([docs/methods.md](../docs/methods.md#calibration) says what that changes):

```yaml
calibration:
  propagate: dense
```

**A model** of the hub says its commit, and its sizes, which the plan needs before the download:

```yaml
models:
  llama-2-13b:
    title: Llama-2-13B
    variant: tile
    dtype: bfloat16
    published: meta-llama/Llama-2-13b-hf
    source:
      kind: hub
      repo: meta-llama/Llama-2-13b-hf
      revision: 5c31dfb671ce7cfe2d7bb7c04375e44c55e815b1
      shape:
        hidden_size: 5120
        intermediate_size: 13824
        num_hidden_layers: 40
        num_attention_heads: 40
        num_key_value_heads: 40
        head_dim: 128
        vocab_size: 32000
learning:
  overrides:
    - method: patch-tile
      model: llama-2-13b
      set: {lr: 0.001, sparsity_reg: 2.0, weight_reg: 0.05}
```

A small one is trained by the workflow, from a corpus, in minutes:

```yaml
models:
  wide:
    title: Llama 2.6M
    variant: tile
    source:
      kind: train
      architecture: llama
      corpus: kjv
      config:
        hidden_size: 256
        intermediate_size: 768
        num_hidden_layers: 2
        num_attention_heads: 4
      training: {steps: 1500, seqlen: 128}
```

**A method** is a name in a block; [docs/adding-a-method.md](../docs/adding-a-method.md) shows how to add one of your
own. `patch` stands for `patch-joint` or `patch-tile`, as the model's `variant` says; both names can also be written
out.

```yaml
grid:
  - methods: [magnitude, wanda, sparsegpt]
    pattern: "1:4"
  - methods: [wanda]
    pattern: unstructured
    sparsity: [0.6]
  - methods: [patch-tile]
    models: [llama, qwen]
    sparsity: [0.35]
```

{methods}

**Speed** is measured where a section `speedup` is there, on each model's 2:4 and hybrid runs beside the dense model,
with by default the sizes of the paper's table. A configuration that goes on top of one with it says `speedup: null` to
do without.

```yaml
speedup: {batch_size: 16, prompt: 128, new_tokens: 128}
```

**A corpus** is local files, a data set of the hub, or a string in an installed package. `use` says which part
of it a stage reads.

```yaml
corpora:
  novels:
    source:
      kind: files
      files: [texts/*.txt]
      split: {train: 0.8, calibration: 0.1, validation: 0.0, test: 0.1}
calibration:
  use: {corpus: novels, split: calibration}
evaluation:
  perplexity:
    use: {corpus: novels, split: test}
```

## How learning settings are found

Later lines win: the method's published values, then `learning.common`, then `learning.methods.<method>`, then
each entry of `learning.overrides` that matches, in order, then what the block of the grid varies. An override matches
a run when each of `method`, `model` and `sparsity` that it gives is the run's.

```yaml
learning:
  common:
    steps: 500
  methods:
    patch-tile: {lr: 0.002}
  overrides:
    - method: patch-joint
      sparsity: 0.45
      set: {tile_temperature: [4.0, 0.05]}
    - model: qwen
      set: {steps: 1000}
```

Published values that differ between methods:

{method_defaults}

## Every key

"required" means that there is no default; "none", that the key may be left out."""
