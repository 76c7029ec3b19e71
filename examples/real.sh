#!/usr/bin/env bash
# The commands a user would type, on real radiology images: RADSHOT_DATA names the folder that holds medpix2 and
# covid_chestxray. Everything is written below the folder given as first argument (runs/real by default).
# What it printed is in real.txt beside this file. Few patients, one training of a few minutes: a walk, not a benchmark.
set -euo pipefail
: "${RADSHOT_DATA:?set RADSHOT_DATA to the folder of the image sets}"
OUT=${1:-runs/real}
MEDPIX=$RADSHOT_DATA/medpix2/manifest.csv
CHEST=$RADSHOT_DATA/covid_chestxray
FRONTAL="modality = 'X-ray' AND view IS NOT 'L'"
export COLUMNS=110
say() {
  local word line='$'
  for word in "$@"; do [[ $word == *[[:space:]\']* ]] && line+=" \"$word\"" || line+=" $word"; done
  printf '\n%s\n' "$line" | sed -e "s#$RADSHOT_DATA#\$RADSHOT_DATA#g" -e "s#$OUT#out#g"
}
run() { say "$@"; "$@" 2>&1 | sed -e "s#$RADSHOT_DATA#\$RADSHOT_DATA#g" -e "s#$PWD/##g" -e "s#$OUT#out#g" | grep -v '^training \|^embedding '; }
rm -rf "$OUT"

# 1. Train an encoder on CT and MR teaching cases: location and modality make the classes.
run radshot train "$MEDPIX" --where "split = 'train' AND radiology = 1" --label location+modality \
  --group split_group --episodes 400 --n-query 3 --flip 0.5 --out "$OUT/encoder"

# 2. How well does it do on chest X-rays, a domain it never saw? The five findings with 7 or more patients.
run radshot evaluate "$CHEST/manifest.csv" --where "$FRONTAL" --label finding --group split_group \
  --encoder "$OUT/encoder" --k-shot 5 --episodes 300

# 3. Embed the archive, twice: the second time nothing is left to do.
run radshot embed --manifest "$CHEST/manifest.csv" --where "$FRONTAL" --group split_group \
  --encoder "$OUT/encoder" --archive "$OUT/archive"
run radshot embed --manifest "$CHEST/manifest.csv" --where "$FRONTAL" --group split_group \
  --encoder "$OUT/encoder" --archive "$OUT/archive"

# 4. Register five patients of each of three findings.
run radshot register "$OUT/cases" --encoder "$OUT/encoder" --manifest "$CHEST/manifest.csv" --label-column finding \
  --group split_group --where "$FRONTAL AND (
       finding = 'Pneumocystis' AND split_group IN ('101', '102', '103', '104', '105')
    OR finding = 'SARS'         AND split_group IN ('10', '170', '171', '172', '3')
    OR finding = 'No Finding'   AND split_group IN ('173', '210', '211', '214', '223'))"

# 5. Ask about images of other patients: three with Pneumocystis, three with SARS, three without a finding.
ASK=("$CHEST"/images/pneumocystis-pneumonia-12.jpg "$CHEST"/images/pneumocystis-jirovecii-pneumonia-2.jpg
  "$CHEST"/images/pneumocystis-pneumonia-2-PA.jpg
  "$CHEST"/images/SARS-10.1148rg.242035193-g04mr34g04a-Fig4a-day7.jpg
  "$CHEST"/images/SARS-10.1148rg.242035193-g04mr34g05x-Fig5-day9.jpg
  "$CHEST"/images/SARS-10.1148rg.242035193-g04mr34g07a-Fig7a-day5.jpg
  "$CHEST"/images/2c35005f.jpg "$CHEST"/images/e22aa56f.jpg "$CHEST"/images/ada8c494.jpg)
run radshot classify "$OUT/cases" "${ASK[@]}"

# 6. How often is that right? And what is promised once the set is deployed: nobody is set aside here, so the support is
#    calibrated on, each patient left out in turn.
run radshot estimate "$OUT/cases"
run radshot deploy "$OUT/cases"
run radshot classify "$OUT/cases" "${ASK[@]}" --json "$OUT/before.json"

# 7. What in the archive looks like the first of them?
run radshot search "$OUT/archive" "${ASK[0]}" -k 5
run radshot search "$OUT/archive" --id images/2c35005f.jpg -k 3 --where "finding = 'No Finding'"

# 8. Patient 101 withdraws: forgotten in the set and in the archive, effective on the next question.
run radshot forget "$OUT/cases" --patient 101
run radshot forget "$OUT/archive" --patient 101
run radshot classify "$OUT/cases" "${ASK[@]}" --json "$OUT/after.json"

# 9. Every command above was a process of its own; the set and the archive are as the last one left them.
run radshot stats "$OUT/cases"
run radshot verify "$OUT/cases"
run radshot verify "$OUT/archive"
